"""A saved moment, as a Python object: look at it, bring it back, fork it, compare it. Made by `Box.save` and
Repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijfs.live.client import api as client
from ijfs.live.client.api import NO_SECRETS
from ijfs.live.model.records import NO_LIMITS, Idle, Limits
from ijfs.sdk import calls
from ijfs.sdk.box import Box, Env
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.history.comparison import FileChange, MemoryChange
    from ijfs.live.client.api import OnEvent, SaveResult
    from ijfs_engine import Exported, Repository
    from ijfs_engine import Snapshot as Record

FILES, MEMORY = "files", "images"
"""What is at a snapshot's top: the files that the program wrote, and its memory as CRIU's images."""


@dataclass(frozen=True)
class Difference:
    """What differs between two snapshots: files by their paths, memory process by process."""

    files: tuple[FileChange, ...]
    memory: tuple[MemoryChange, ...]


class Snapshot:
    """One snapshot of a repository. `id`: 64 hex digits. `saved`: what the save did that made it (SaveResult), where
    this object comes from `Box.save`."""

    def __init__(self, repo: Path, id: str, *, saved: SaveResult | None = None) -> None:
        self.repo, self.id, self.saved = repo, id, saved
        self._record: Record | None = None

    def __repr__(self) -> str:
        return f"Snapshot({self.id[:12]!r})"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and (self.repo, self.id) == (other.repo, other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """What the repository has of it: message, parents, created_ns, size, added, meta. UnknownNameError once it is
        removed."""
        if self._record is None:
            with self._engine() as repository:
                self._record = repository.snapshot(bytes.fromhex(self.id))
        return self._record

    @property
    def message(self) -> str:
        """What was said of it."""
        return self.record.message

    @property
    def parents(self) -> list[Snapshot]:
        """The snapshots that it continues; of one that was removed, those before it."""
        with self._engine() as repository:
            return [Snapshot(self.repo, parent.hex()) for parent in repository.parents(bytes.fromhex(self.id))]

    @property
    def program(self) -> str:
        """The name of the instance that it was saved from; "" of an imported directory."""
        spec: Any = self.record.meta.get("spec")
        return str(spec.get("name", "")) if isinstance(spec, dict) else ""

    def read(self, path: str) -> bytes:
        """A file that the program wrote (an absolute path of its sandbox), as it was at that moment. UnknownNameError
        where it wrote none there: the others are those of its machine or base."""
        with self._engine() as repository:
            reader = repository.reader()
            entry = reader.lookup(self.record.root, f"{FILES}/{path.strip('/')}")
            if entry.kind != "f":
                raise IjfsError(f"{path} is not a file in {self.id[:12]}")
            stored = reader.open(entry)
            return stored.read(0, stored.size)

    def diff(self, old: Snapshot | str | None = None, *, memory: bool = True) -> Difference:
        """What is other here than in `old` (default: its first parent)."""
        from ijfs.history import comparison

        with self._engine() as repository:
            before = self._older(repository, old)
            reader, after = repository.reader(), self.record
            files = comparison.files(reader, before.root, after.root, skip=frozenset({MEMORY.encode()}))
            pages = comparison.memories(reader, before, after, lambda name, done, total: None) if memory else ()
            return Difference(tuple(files), tuple(pages))

    def _older(self, repository: Repository, old: Snapshot | str | None) -> Record:
        if old is not None:
            return repository.snapshot(repository.resolve(str(old)))
        parents = repository.parents(self.record.id)
        if not parents:
            raise IjfsError(f"{self.id[:12]} is the first of its line", hint="name a snapshot to compare with")
        return repository.snapshot(parents[0])

    # -- living copies --------------------------------------------------------------------------------------------

    def restore(
        self,
        name: str | None = None,
        *,
        env: Env | None = None,
        eager: bool = False,
        on_demand: bool = False,
        same_random: bool = False,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Box:
        """Bring it back to life beside everything that is live; it runs at once and its memory follows (`eager`: all
        memory first; `on_demand`: what it touches, and the rest when it is saved). `env`, `same_random`, `limits`,
        `idle`, `secrets`: as `fork` has them."""
        from ijfs.live.client.instances import named
        from ijfs.sdk.forks import is_python_kernel, tell

        def restored(chosen: str) -> client.InstanceInfo:
            return client.restore(
                self.repo,
                self.id,
                chosen,
                eager=eager,
                on_demand=on_demand,
                same_random=same_random,
                env=env,
                limits=limits,
                idle=idle,
                secrets=secrets,
                on_event=on_event,
            )

        info = calls.within(timeout, "the restore", partial(named, self.repo, name, self._wish, restored))
        box = Box(self.repo, info.name)
        if env and is_python_kernel(info):
            tell(box, env)
        return box

    def fork(
        self,
        count: int = 1,
        *,
        names: Sequence[str] = (),
        env: Sequence[Env] = (),
        on_demand: bool = False,
        same_random: bool = False,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        ephemeral: bool = False,
        seed: int | None = None,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> list[Box]:
        """Live copies of it, all at once. `env`: variables of each, in their order; commands that are run in it have
        them, Python kernels in `os.environ`, other programs when they have given a hook (`ijfs.after_restore`).
        `on_demand`: memory that they do not touch takes none, and comes when they are saved: for many at once.
        `same_random`: they draw the same random numbers; `seed`: those of the Nth Python kernel's shared generators
        (random, numpy, torch) begin with `seed` + N, from 0 on. `limits`: what each may take, over what the original
        might; `idle`: what becomes of one that nobody uses, instead of what would of the original; `secrets`: values
        that each can ask for (no snapshot has the original's); `ephemeral`: at its end it leaves nothing behind, no
        branch either. A kernel in the middle of a cell takes variables and seed when that is done. When one does not
        come up the others stay (PartialError)."""
        from ijfs.sdk.forks import fork

        return fork(
            self.repo,
            self.id,
            count,
            names=names,
            wish=self._wish,
            env=env,
            on_demand=on_demand,
            message="",
            same_random=same_random,
            limits=limits,
            idle=idle,
            secrets=secrets,
            ephemeral=ephemeral,
            seed=seed,
            timeout=timeout,
            on_event=on_event,
        )

    @property
    def _wish(self) -> str:
        """What the names of its copies begin with, where nobody chose them."""
        return self.program or self.id[:12]

    # -- its place ------------------------------------------------------------------------------------------------

    def tag(self, name: str) -> None:
        """Give it a name that stays and keeps it. ConflictError where another has it."""
        with self._engine() as repository:
            repository.refs.set_tag(name, bytes.fromhex(self.id))

    def forget_branch(self, name: str) -> None:
        """Delete a branch that stands here; gc then frees what nothing else keeps. ConflictError where it has moved
        on."""
        with self._engine() as repository:
            repository.refs.delete_branch(name, expect=bytes.fromhex(self.id))

    def export(self, directory: Path | str, *, path: str = "") -> Exported:
        """Write it, or what is below `path` of it (`files/home/me`), to a directory that is new or empty."""
        from ijfs_engine import export_tree

        target = Path(directory)
        if target.exists() and any(target.iterdir()):
            raise IjfsError(f"{target} is not an empty directory")
        with self._engine() as repository:
            reader = repository.reader()
            top = reader.lookup(self.record.root, path.strip("/")) if path.strip("/") else None
            tree = self.record.root if top is None else top.content
            if tree is None or (top is not None and top.kind != "d"):
                raise IjfsError(f"{path} is not a directory in {self.id[:12]}")
            target.mkdir(parents=True, exist_ok=True)
            return export_tree(reader, tree, target, top=top)

    def remove(self) -> None:
        """Remove it; branches at it move to its parent. LockedError while a live program stands on it."""
        with self._engine() as repository:
            repository.remove(bytes.fromhex(self.id))

    @contextmanager
    def _engine(self) -> Iterator[Repository]:
        from ijfs_engine import Repository

        with Repository.open(self.repo) as repository:
            yield repository
