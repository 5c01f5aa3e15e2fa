"""Verbs of live programs on a disk that is really full but for so many KiB, at every level until they succeed.

    PYTHONPATH=tests python tests/live/small_disk_live.py [--kind ext4|tmpfs] [--step KIB] [VERB …]

A program runs in a repository on a small disk. A verb is done as a person does it. Whether or not it found room: the
program is the same process and goes on, every older snapshot is listed and whole; what failed says that the disk is
full and what to do, and leaves no process and no file. test_full_disk_live.py does some of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from full_disks import empty, fill, mounted
from live_env import LiveEnv, open_env, why_not
from waiting import eventually

from ijfs.cli.verbs.save import UNRESTORABLE
from ijfs.live.client import api as client
from ijfs_engine import Repository
from ijfs_engine.errors import LockedError

SIZE: Final = 64 << 20
LEVELS_KIB: Final = (0, 4, 16, 64, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
_NEW: Final = 400_000
_ENOUGH: Final = 2
"""Levels in a row at which a verb found room."""

COUNTING: Final = "i=0; while true; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.05; done"
"""It writes to no disk: one that is full is none of its affair."""

VERBS: Final[dict[str, list[str]]] = {
    "save": ["save", "main", "-m", "more"],
    "save --verify": ["save", "main", "--verify"],
    "save --no-wait": ["save", "main", "--no-wait"],
    "save --stop": ["save", "other", "--stop"],
    "run": ["run", "--name", "copy", "--", "sleep", "1000"],
    "restore": ["restore", "{first}", "--name", "copy"],
    "restore --eager": ["restore", "{first}", "--name", "copy", "--eager"],
    "restore --replace": ["restore", "{other}", "--name", "other", "--replace"],
    "fork": ["fork", "main", "--names", "copy"],
    "fork of a snapshot": ["fork", "{first}", "--names", "copy"],
    "stop": ["stop", "other"],
    "exec": ["exec", "main", "--", "true"],
    "base import": ["base", "import", "{folder}", "--name", "b"],
    "ps": ["ps"],
    "logs": ["logs", "main"],
}
ALWAYS: Final = frozenset({"stop", "exec", "ps", "logs"})
"""What needs no room."""
_ENDS_OTHER: Final = ("stop", "save --stop")


class Done(NamedTuple):
    """How a verb ended and what it said."""

    code: int
    said: str


class SmallDisk:
    """A repository on a small disk, with a program `main` in it that is watched, and one `other` to be ended."""

    def __init__(self, env: LiveEnv, disk: Path, folder: Path) -> None:
        self.env = env
        self.disk = disk
        self.folder = folder
        os.environ["IJFS_SPARE_S"] = "0"
        self.pid = env.command("main", COUNTING).pid
        self.others: list[str] = []
        self._new_other()
        self.first = env.save("main", "first").snapshot
        self.other = env.save("other", "other").snapshot

    def trial(self, verb: str, left: int) -> Done:
        """Do a verb with so much room, and check all that is promised."""
        self._prepare(verb)
        before, snapshots = self._seen(), len(self.snapshots())
        fill(self.disk, left)
        done = self.do(VERBS[verb])
        where = f"{verb} with {left >> 10} KiB left: {done}"
        _check_said(done, where)
        assert self.goes_on(), where
        if verb == "save --no-wait" and done.code == 0:
            done = done._replace(code=self._stored(where))
        elif done.code == UNRESTORABLE:  # it is saved, and there was no room to try it
            assert len(self.snapshots()) == snapshots + 1, where
        elif done.code:
            self._check_unchanged(verb, before, where)
        self._check_whole(where)
        empty(self.disk)
        self._check_whole(where)
        self._undo(verb, done)
        return done

    def do(self, verb: list[str]) -> Done:
        """A verb as a person calls it."""
        words = [one.format(first=self.first, other=self.other, folder=self.folder) for one in verb]
        command = [sys.executable, "-m", "ijfs.cli", "-r", str(self.env.repo), *words]
        environment = {**os.environ, "NO_COLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
        return Done(done.returncode, done.stdout + done.stderr)

    def goes_on(self) -> bool:
        """Whether the program is the same process, and counts."""
        before = self._count()
        return client.describe(self.env.repo, "main").pid == self.pid and eventually(lambda: self._count() > before)

    def write(self, name: str, size: int) -> None:
        """Give a program something new to be saved, that takes no room on the disk until then."""
        pid = client.describe(self.env.repo, name).pid
        Path(f"/proc/{pid}/root/dev/shm/noise").write_bytes(random.randbytes(size))

    def snapshots(self) -> list[str]:
        """The ids of all snapshots."""
        with Repository.open(self.env.repo) as repository:
            return [one.id.hex() for one in repository.snapshots()]

    # --- one trial

    def _count(self) -> int:
        # The program writes it anew each time, and may just have emptied it.
        text = ""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.pid}/root/dev/shm/count").read_text()
        return int(text) if text.endswith("\n") else -1

    def _new_other(self) -> None:
        self.env.command("other", COUNTING)

    def _prepare(self, verb: str) -> None:
        """Something new to store, so that it needs room."""
        if verb == "base import":
            (self.folder / "noise").write_bytes(random.randbytes(_NEW))
        elif verb.startswith(("save", "fork")):
            self.write("other" if verb == "save --stop" else "main", _NEW)

    def _seen(self) -> tuple[object, ...]:
        """All that a verb that failed may not have changed."""
        instances = [(one.name, one.pid, one.status) for one in client.list_instances(self.env.repo)]
        live = sorted(path.name for path in (self.env.repo / "live").iterdir() if not path.name.startswith("."))
        packs = sorted(os.listdir(self.env.repo / "packs"))
        boxes = sorted(path.name for path in (self.env.repo / "live/main").glob("box-*"))
        return self.snapshots(), packs, sorted(instances), live, boxes

    def _stored(self, where: str) -> int:
        """What came of a save that was answered at the thaw."""
        assert eventually(lambda: not client.describe(self.env.repo, "main").saving, 30), where
        error = client.describe(self.env.repo, "main").save_error
        assert not error or "No space left" in error, (where, error)
        return int(bool(error))

    def _check_unchanged(self, verb: str, before: tuple[object, ...], where: str) -> None:
        after = self._seen()
        # A fork saves first; what it saved stays, though no sibling came up.
        said = 2 if verb == "fork" else 0
        assert after[said:] == before[said:], (where, before, after)

    def _check_whole(self, where: str) -> None:
        with Repository.open(self.env.repo) as repository:
            assert repository.fsck().clean, (where, repository.fsck().damage)
            assert {self.first, self.other} <= {one.id.hex() for one in repository.snapshots()}, where

    def _undo(self, verb: str, done: Done) -> None:
        names = {one.name: one for one in client.list_instances(self.env.repo)}
        if "copy" in names:
            self.env.stop("copy", timeout_s=0)
            client.remove(self.env.repo, "copy")
        if names["other"].status != "running":
            assert (verb in _ENDS_OTHER, done.code) == (True, 0), (verb, done, names["other"])
            client.remove(self.env.repo, "other")
            self._new_other()
        with Repository.open(self.env.repo) as repository:
            keep = {self.first, self.other}
            for tag in repository.refs.tags():
                repository.refs.delete_tag(tag)
            for one in repository.snapshots():
                if one.id.hex() not in keep:
                    with contextlib.suppress(LockedError):  # the program stands on it
                        repository.remove(one.id)
            repository.gc()
            repository.gc()


def _check_said(done: Done, where: str) -> None:
    assert done.code in (0, 1, UNRESTORABLE), where
    for never in ("Traceback", "unexpected", "InternalError", "may be damaged", "fault of ijfs"):
        assert never not in done.said, where
    if done.code:
        assert "no space left" in done.said.lower() or "no room" in done.said, where
        assert "free" in done.said, f"{where}: no word of what to do"


@contextlib.contextmanager
def small_disk(kind: str, where: Path) -> Iterator[SmallDisk]:
    """For the block: a small disk with programs; nothing of it is left."""
    folder = where / "folder"
    folder.mkdir()
    with mounted(kind, where, SIZE) as disk, open_env(disk) as env:
        try:
            yield SmallDisk(env, disk, folder)
        finally:
            empty(disk)


def levels(trial: Callable[[int], Done], step: int | None) -> int | None:
    """Go up until a verb has found room; the KiB from which on it did, None where it never failed."""
    good, enough, failed = 0, 0, False
    for left in range(0, LEVELS_KIB[-1], step) if step else LEVELS_KIB:
        if trial(left << 10).code:
            good, failed = 0, True
            continue
        good += 1
        enough = left if good == 1 else enough
        if good == _ENOUGH:
            return enough if failed else None
    raise AssertionError("it never finds enough room")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("ext4", "tmpfs"))
    parser.add_argument("--step", type=int, help="KiB from level to level; without it few levels, which grow")
    parser.add_argument("verbs", nargs="*", default=list(VERBS))
    asked = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    trials = 0
    for kind in [asked.kind] if asked.kind else ["tmpfs", "ext4"]:
        where = Path(tempfile.mkdtemp(prefix="ijfs-full-live-"))
        try:
            with small_disk(kind, where) as small:
                for verb in asked.verbs:

                    def trial(left: int, verb: str = verb, small: SmallDisk = small) -> Done:
                        nonlocal trials
                        trials += 1
                        return small.trial(verb, left)

                    enough = levels(trial, asked.step)
                    assert enough is None or verb not in ALWAYS, f"{verb} needs {enough} KiB"
                    print(f"{kind:6} {verb:18} works from {enough or 0} KiB on", flush=True)
        finally:
            shutil.rmtree(where, ignore_errors=True)
    print(f"{trials} trials: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
