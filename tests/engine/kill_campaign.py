"""Kills a repository's processes at random steps, thousands of times over, with packs of large frames and differences.

    kill_campaign.py [--kills N] [--seed N]

One repository grows and shrinks: saves of large and small chunks, whole or as differences, rm, prune, gc, tags, repair.
Each runs in a process that dies by SIGKILL at a random write, fsync, rename, unlink or commit; after every other death
the loss of power follows: what was not synced is cut off. Then fsck must be clean, every acknowledged snapshot
be listed with its bytes, every branch at what was acknowledged or was just on its way; now and then gc must bring the
disk down to what is needed. test_crash.py goes through every step of single operations.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from crashkit import Fuse, lose_power
from storekit import chunks, pack_paths, put, put_against

from ijfs_engine import PrunePolicy, Repository
from ijfs_engine.format.frames import MAX_CHUNK, FrameKind, chunk_id
from ijfs_engine.format.records import Entry, Tree, encode_tree
from ijfs_engine.maintenance.repack import SPARSE
from ijfs_engine.storage import disk

_BRANCHES: Final = ("one", "two", "three")
_SIZES: Final = (300, 5000, 65_464, 65_536, 90_000, 200_000, MAX_CHUNK)

_REACH: Final = (8, 25, 80)
"""How far an operation gets at most: gc has 4 steps where there is nothing to do, and 60 where it copies packs."""


class Piece(NamedTuple):
    """A chunk by what it is made from: of random bytes or of text; or another one with every eighth stretch changed."""

    seed: int
    size: int
    text: bool
    turns: int = 0

    def data(self) -> bytes:
        """Its bytes."""
        if self.text:
            return (b"line %d of a text that packs well\n" % self.seed * (self.size // 20 + 1))[: self.size]
        plain = bytearray(random.Random(self.seed).randbytes(self.size))
        for turn in range(self.turns):
            change = random.Random(self.seed * 1000 + turn)
            for at in range(0, self.size - 64, 512):
                plain[at : at + 32] = change.randbytes(32)
        return bytes(plain)


class Model:
    """What was acknowledged: snapshots with their pieces, and where the branches are."""

    def __init__(self) -> None:
        self.snapshots: dict[str, list[Piece]] = {}
        self.heads: dict[str, str] = {}
        self.tags: dict[str, str] = {}


def save(repository: Repository, branch: str, pieces: list[Piece], before: dict[int, Piece]) -> str:
    """Commit one-chunk files; what is a later turn of a piece that is there is stored as a difference to it."""
    with repository.session() as session:
        entries = []
        for number, piece in enumerate(pieces):
            data, old = piece.data(), before.get(piece.seed)
            if old is not None and old.turns == piece.turns - 1 and piece.turns < 4 and not piece.text:
                base = old.data()
                if session.lookup_many([chunk_id(base), chunk_id(data)]) == [True, False]:
                    put_against(session, data, base, chunk_id(base), piece.turns - 1)
            entries.append(Entry(b"%06d" % number, "f", 0o644, 0, 0, 0, size=len(data), content=put(session, data)))
        root = session.put_object(FrameKind.TREE, encode_tree(Tree(tuple(entries))))
        parents = [head for name, head in repository.refs.branches().items() if name == branch]
        return session.commit_snapshot(root, parents=parents, branch=branch).id.hex()


def in_child(work: Callable[[], Any], step: int, path: Path) -> tuple[int, Any]:
    """Do it in a process that dies at a step, if it comes so far; (signal or exit code, what it acknowledged)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            fuse = Fuse(path, step)
            disk.observer = fuse
            answer = work()
            disk.observer = None
            os.write(writing, json.dumps([fuse.count, answer]).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as answers:
        answer = answers.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(answer) if answer else None


class Campaign:
    """One run."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.choose = random.Random(seed)
        self.model = Model()
        self.killed: collections.Counter[str] = collections.Counter()
        self.done: collections.Counter[str] = collections.Counter()
        self.gc_died: collections.Counter[str] = collections.Counter()
        self.seed = 0
        self.rewritten = 0
        """Packs that a gc which was not killed wrote anew."""

    def opened(self, work: Callable[[Repository], Any]) -> Callable[[], Any]:
        """Work on the repository, for a child."""

        def run() -> Any:
            with Repository.open(self.path) as repository:
                return work(repository)

        return run

    def turn(self) -> None:
        """One operation that may die, and the look at what it left."""
        kinds = ["save"] * 6 + ["gc"] * 6 + ["prune"] * 3 + ["rm", "rm", "tag", "repair"]
        kind = self.choose.choice(kinds) if self.model.heads else "save"
        work, after = getattr(self, f"_{kind}")()
        step = self.choose.randint(1, self.choose.choice(_REACH))
        code, answer = in_child(self.opened(work), step, self.path)
        assert code in (0, -signal.SIGKILL), f"{kind} ended with {code}"
        if code == 0:
            self.done[kind] += 1
        else:
            self.killed[kind] += 1
            if kind == "gc":
                self.gc_died[json.loads(self.path.with_suffix(".unsynced").read_text())["died"]] += 1
            if self.killed.total() % 2:
                lose_power(self.path)
        after(answer[1] if code == 0 else None)
        self._check(full=self.killed.total() % 20 == 0)

    # --- operations: what a child does, and what is to hold after

    def _pieces(self, branch: str) -> tuple[list[Piece], dict[int, Piece]]:
        head = self.model.heads.get(branch)
        old = self.model.snapshots.get(head or "", [])
        pieces = []
        for piece in old:
            fate = self.choose.random()
            if fate < 0.25 and not piece.text:
                pieces.append(piece._replace(turns=piece.turns + 1))
            elif fate < 0.8:
                pieces.append(piece)
        while len(pieces) < 3 or (len(pieces) < 14 and self.choose.random() < 0.6):
            self.seed += 1
            pieces.append(Piece(self.seed, self.choose.choice(_SIZES), self.choose.random() < 0.3))
        return pieces, {piece.seed: piece for piece in old}

    def _save(self) -> tuple[Callable[[Repository], Any], Callable[[Any], None]]:
        branch = self.choose.choice(_BRANCHES)
        pieces, before = self._pieces(branch)

        def after(ident: str | None) -> None:
            now = self._heads().get(branch)
            if ident is None and now == self.model.heads.get(branch):
                return
            assert now is not None
            assert ident in (None, now)
            self.model.heads[branch] = now
            self.model.snapshots[now] = pieces

        return lambda repository: save(repository, branch, pieces, before), after

    def _rm(self) -> tuple[Callable[[Repository], Any], Callable[[Any], None]]:
        free = [one for one in self.model.snapshots if one not in self.model.tags.values()]
        victim = self.choose.choice(free or ["none"])

        def work(repository: Repository) -> bool:
            if victim != "none":
                repository.remove(bytes.fromhex(victim))
            return True

        return work, lambda done: self._gone([victim], must=bool(done))

    def _prune(self) -> tuple[Callable[[Repository], Any], Callable[[Any], None]]:
        def work(repository: Repository) -> list[str]:
            return [one.hex() for one in repository.prune(PrunePolicy(last=1)).removed]

        return work, lambda removed: self._gone(removed if removed is not None else list(self.model.snapshots))

    def _gc(self) -> tuple[Callable[[Repository], Any], Callable[[Any], None]]:
        deep = self.choose.random() < 0.3

        def work(repository: Repository) -> int:
            report = repository.gc(recompress=deep)
            assert not report.packs_kept
            return report.packs_rewritten

        def after(rewritten: int | None) -> None:
            self.rewritten += rewritten or 0

        return work, after

    def _tag(self) -> tuple[Callable[[Repository], Any], Callable[[Any], None]]:
        name, target = f"t{len(self.model.tags)}", self.choose.choice(list(self.model.heads.values()))

        def work(repository: Repository) -> bool:
            for old in list(repository.refs.tags())[:-2]:
                repository.refs.delete_tag(old)
            if name not in repository.refs.tags():
                repository.refs.set_tag(name, bytes.fromhex(target))
            return True

        def after(done: bool | None) -> None:
            self.model.tags = self._names("tags")

        return work, after

    def _repair(self) -> tuple[Callable[[Repository], Any], Callable[[Any], None]]:
        return lambda repository: repository.fsck(repair=True).clean, lambda clean: None

    def _gone(self, removed: list[str], *, must: bool = False) -> None:
        """Snapshots that may be gone now. Heads follow to what is left."""
        listed = self._listed()
        for ident in removed:
            assert not must or ident not in listed
            if ident not in listed:
                self.model.snapshots.pop(ident, None)
        self.model.heads = {name: head for name, head in self._heads().items() if name in self.model.heads}

    # --- looks

    def _names(self, kind: str) -> dict[str, str]:
        def look(repository: Repository) -> dict[str, str]:
            found = repository.refs.branches() if kind == "heads" else repository.refs.tags()
            return {name: ident.hex() for name, ident in found.items()}

        return self._look(look)

    def _heads(self) -> dict[str, str]:
        return self._names("heads")

    def _listed(self) -> set[str]:
        return set(self._look(lambda repository: [one.id.hex() for one in repository.snapshots()]))

    def _look(self, look: Callable[[Repository], Any]) -> Any:
        code, answer = in_child(self.opened(look), 0, self.path)
        assert code == 0, "a look at the repository failed"
        return answer[1]

    def _check(self, *, full: bool) -> None:
        """All promises."""
        model = self.model
        sample = self.choose.sample(sorted(model.snapshots), min(3, len(model.snapshots)))

        def look(repository: Repository) -> list[str]:
            report = repository.fsck()
            assert report.clean, report.damage
            listed = {one.id.hex() for one in repository.snapshots()}
            # gc takes what no name leads to.
            reached = {ident for ident in model.snapshots if ident in listed}
            heads = {name: ident.hex() for name, ident in repository.refs.branches().items()}
            assert heads == model.heads, (heads, model.heads)
            assert set(heads.values()) <= listed
            for ident in sample if not full else sorted(reached):
                if ident in listed:
                    pieces = [piece.data() for piece in model.snapshots[ident]]
                    found = chunks(repository, [chunk_id(piece) for piece in pieces])
                    assert list(map(bytes, found)) == pieces
            if full:
                repository.gc()
                needed = repository.du().total.stored
                there = sum(path.stat().st_size for path in pack_paths(repository))
                assert there <= (needed + 64 * len(pack_paths(repository))) / (1 - SPARSE), (there, needed)
                assert not list(repository.directory.sessions.iterdir())
            return sorted(listed)

        listed = set(self._look(look))
        named = self._reachable(listed)
        lost = [ident for ident in named if ident not in listed]
        assert not lost, lost
        model.snapshots = {ident: pieces for ident, pieces in model.snapshots.items() if ident in listed}

    def _reachable(self, listed: set[str]) -> set[str]:
        """What a name leads to directly: gc may never have taken that."""
        return {*self.model.heads.values(), *self.model.tags.values()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    where = Path(tempfile.mkdtemp(prefix="ijfs-kill-"))
    try:
        Repository.init(where / "r").close()
        campaign, told = Campaign(where / "r", asked.seed), 0
        while campaign.killed.total() < asked.kills:
            campaign.turn()
            if campaign.killed.total() % 100 == 0 and campaign.killed.total() > told:
                told = campaign.killed.total()
                print(f"{told} killed; gc at {dict(campaign.gc_died)}", flush=True)
    finally:
        shutil.rmtree(where, ignore_errors=True)
    print(f"killed: {dict(sorted(campaign.killed.items()))}")
    print(f"gc died at: {dict(campaign.gc_died.most_common())}")
    print(f"ended: {dict(sorted(campaign.done.items()))}; {campaign.rewritten} packs rewritten")
    print(f"{time.monotonic() - began:.0f} s")
    print("1 passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())
