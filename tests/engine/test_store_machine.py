"""The store against a model of dicts: any order of saves, refs, rm, gc, fsck, reopen and rebuild agrees with it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from storekit import contents, put, put_against, save

from ijfs_engine import CorruptError, Repository, UnknownNameError
from ijfs_engine.format.frames import FrameKind, chunk_id
from ijfs_engine.format.records import encode_tree
from ijfs_engine.storage.session import Session

BLOCKS = [bytes([number]) * 40 + number.to_bytes(2, "big") * 3000 for number in range(8)]
BASE = b"".join(number.to_bytes(4, "big") for number in range(1024))
NEAR = [BASE[: 4 * number] + b"####" + BASE[4 * number + 4 :] for number in range(1, 4)]

files = st.dictionaries(st.sampled_from("abc"), st.integers(0, len(BLOCKS) - 1), min_size=1)
branches = st.sampled_from(["main", "side", "third"])
picks = st.integers(0, 1 << 16)


class StoreMachine(RuleBasedStateMachine):
    """Rules do the same to a repository and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ijfs-machine-"))
        self.repository = Repository.init(self.folder / "repo")
        self.files: dict[bytes, dict[str, bytes]] = {}
        self.parent: dict[bytes, bytes | None] = {}
        self.heads: dict[str, bytes] = {}
        self.tags: dict[str, bytes] = {}
        self.gone: set[bytes] = set()
        self.waiting: list[tuple[Session, dict[str, bytes]]] = []

    def teardown(self) -> None:
        for session, _ in self.waiting:
            session.abort()
        self.repository.close()
        shutil.rmtree(self.folder)

    def note(self, ident: bytes, wanted: dict[str, bytes], branch: str, parent: bytes | None) -> None:
        self.files[ident], self.parent[ident], self.heads[branch] = wanted, parent, ident

    def pick(self, number: int) -> bytes:
        return sorted(self.files)[number % len(self.files)]

    # --- saves

    @rule(chosen=files, branch=branches)
    def save(self, chosen: dict[str, int], branch: str) -> None:
        wanted = {name: BLOCKS[number] for name, number in chosen.items()}
        parent = self.heads.get(branch)
        snapshot = save(self.repository, wanted, parents=[parent] if parent else [], branch=branch)
        self.note(snapshot.id, wanted, branch, parent)

    @rule(number=st.integers(0, 2), other=st.integers(0, 2), branch=branches)
    def save_differences(self, number: int, other: int, branch: str) -> None:
        """Chunks stored against each other, in whichever direction comes up."""
        first, second = (NEAR[number], NEAR[other]) if number != other else (BASE, NEAR[number])
        wanted = {"x": first, "y": second}
        with self.repository.session() as session:
            put(session, first)
            info = self.repository.store.chunk_info([chunk_id(first)])[0]
            depth = info.depth if info else 0
            if depth < 4 and not session.lookup_many([chunk_id(second)])[0]:
                put_against(session, second, first, chunk_id(first), depth)
            parent = self.heads.get(branch)
            parents = [parent] if parent else []
            snapshot = save(self.repository, wanted, parents=parents, branch=branch, session=session)
        self.note(snapshot.id, wanted, branch, parent)

    @rule(chosen=files)
    def begin_and_find(self, chosen: dict[str, int]) -> None:
        """A session that looks now and commits later."""
        wanted = {name: BLOCKS[number] for name, number in chosen.items()}
        session = self.repository.session()
        for data in wanted.values():
            for at in range(0, len(data), 4096):
                put(session, data[at : at + 4096])
        self.waiting.append((session, wanted))

    @precondition(lambda self: self.waiting)
    @rule(number=picks, branch=branches, commit=st.booleans(), publish=st.booleans())
    def end_one(self, number: int, branch: str, commit: bool, publish: bool) -> None:
        session, wanted = self.waiting.pop(number % len(self.waiting))
        if publish:
            session.publish()
        if not commit:
            session.abort()
            return
        parent = self.heads.get(branch)
        parents = [parent] if parent else []
        snapshot = save(self.repository, wanted, parents=parents, branch=branch, session=session)
        self.note(snapshot.id, wanted, branch, parent)

    @precondition(lambda self: self.files)
    @rule(number=picks, branch=branches)
    def take_over(self, number: int, branch: str) -> None:
        """A snapshot made of another's tree, without looking anything up."""
        with self.repository.session() as session:
            source = self.pick(number)
            tree = self.repository.store.tree(self.repository.snapshot(source).root)
            root = session.put_object(FrameKind.TREE, encode_tree(tree))
            snapshot = session.commit_snapshot(root, parents=[source], branch=branch)
        self.note(snapshot.id, self.files[source], branch, source)

    # --- names

    @rule(branch=branches)
    def drop_branch(self, branch: str) -> None:
        if self.heads.pop(branch, None):
            self.repository.refs.delete_branch(branch)

    @precondition(lambda self: self.files)
    @rule(number=picks)
    def tag(self, number: int) -> None:
        ident = self.pick(number)
        name = f"t{len(self.tags) % 3}"
        self.repository.refs.set_tag(name, ident, expect=self.tags.get(name))
        self.tags[name] = ident

    @precondition(lambda self: self.files)
    @rule(number=picks)
    def remove(self, number: int) -> None:
        ident = self.pick(number)
        if ident in self.tags.values():
            return
        self.repository.remove(ident)
        del self.files[ident]
        self.gone.add(ident)
        for branch in [name for name, head in self.heads.items() if head == ident]:
            heir = self.ancestor(ident)
            del self.heads[branch]
            if heir:
                self.heads[branch] = heir

    def ancestor(self, ident: bytes) -> bytes | None:
        """The nearest parent that is still listed."""
        parent = self.parent[ident]
        while parent is not None and parent not in self.files:
            parent = self.parent[parent]
        return parent

    # --- care

    @rule(recompress=st.booleans())
    def gc(self, recompress: bool) -> None:
        self.repository.gc(recompress=recompress)
        keep: set[bytes] = set()
        for head in [*self.heads.values(), *self.tags.values()]:
            link: bytes | None = head
            while link is not None:
                keep.add(link)
                link = self.parent[link]
        for ident in list(self.files):
            if ident not in keep:
                del self.files[ident]

    @rule()
    def reopen(self) -> None:
        if not self.waiting:
            self.repository.close()
            self.repository = Repository.open(self.folder / "repo")

    @rule()
    def lose_the_index(self) -> None:
        if not self.waiting:
            self.repository.close()
            shutil.rmtree(self.folder / "repo" / "index")
            self.repository = Repository.open(self.folder / "repo", damaged=True)
            self.repository.fsck(repair=True)

    @rule()
    def fsck(self) -> None:
        report = self.repository.fsck()
        assert report.clean, report.damage

    @invariant()
    def agrees(self) -> None:
        assert {one.id for one in self.repository.snapshots()} == set(self.files)
        assert self.repository.refs.branches() == self.heads
        assert self.repository.refs.tags() == self.tags
        for ident, wanted in self.files.items():
            assert contents(self.repository, ident) == wanted
        for ident in self.gone:
            try:
                self.repository.snapshot(ident)
            except (UnknownNameError, CorruptError):
                continue
            raise AssertionError("a removed snapshot came back")


StoreMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_any_order_of_operations_agrees_with_the_model = StoreMachine.TestCase
