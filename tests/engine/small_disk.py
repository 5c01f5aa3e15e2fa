"""A small disk that is really full: verbs of the command line on an ext4 or tmpfs with so many KiB left.

test_full_disk.py runs a few of them; as a program it goes through every level from none to enough, so that each write
of each verb is the one that finds no room:

    PYTHONPATH=tests python tests/engine/small_disk.py [--step KIB] [--kind ext4|tmpfs] [VERB …]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import lmdb
from full_disks import SIZE, empty, fill, mounted
from storekit import contents, save

from ijfs_engine import Repository
from ijfs_engine.storage.index import _Environment
from ijfs_engine.storage.refs import ANY

KEPT: Final = {"kept": random.Random(1).randbytes(90_000), "text": b"some text\n" * 900}
_ENOUGH: Final = 3
"""Levels in a row at which a verb that needs room found it."""

VERBS: Final[dict[str, list[str]]] = {
    "import": ["import", "{folder}", "-m", "new", "--branch", "new"],
    "tag": ["tag", "v1", "main"],
    "branch": ["branch", "another", "main"],
    "rm": ["rm", "side"],
    "prune": ["prune", "--keep-last", "1"],
    "gc": ["gc"],
    "fsck": ["fsck"],
    "repair": ["fsck", "--repair"],
    "lost index": ["fsck", "--repair"],
    "log": ["log"],
    "du": ["du"],
    "show": ["show", "main"],
    "cat": ["cat", "main:text"],
    "export": ["export", "main", "{elsewhere}"],
}
ALWAYS: Final = {"tag", "branch", "rm", "prune", "gc", "fsck", "repair", "log", "du", "show", "cat", "export"}
"""What works on a disk without a free byte, as long as the reserve is there."""


def build(path: Path) -> None:
    """A repository with something to keep and something to give back: a pack that is wholly dead, one that is mostly.

    Its index has no free page and the last block of its journal no room, so that the smallest change needs some."""
    with Repository.init(path) as repository:
        main = save(repository, KEPT, branch="main", message="first")
        dead = save(repository, {"dead": random.Random(2).randbytes(2_000_000)}, branch="dead")
        stays = random.Random(3).randbytes(20_000)
        mixed = save(repository, {"stays": stays, "goes": random.Random(4).randbytes(600_000)}, branch="mixed")
        one = save(repository, {"stays": stays}, parents=[main.id], branch="side")
        save(repository, {"stays": stays, "more": random.Random(5).randbytes(30_000)}, parents=[one.id], branch="side")
        repository.remove_many([dead.id, mixed.id])
        turns = 0
        while repository.directory.journal.stat().st_size % 4096 < 4000:
            repository.refs.set_branch("turns", (main, one)[turns % 2].id, expect=ANY)
            turns += 1
    whole = path / "whole"
    whole.mkdir()
    with lmdb.open(os.fspath(path / "index"), max_dbs=16) as environment:
        environment.copy(os.fspath(whole), compact=True)
    (whole / "data.mdb").replace(path / "index" / "data.mdb")
    whole.rmdir()


def place(template: Path, disk: Path, *, reserve: bool) -> Path:
    """A copy on the small disk, with its reserve or as if that had been given up."""
    for old in disk.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    path = disk / "r"
    shutil.copytree(template, path, ignore=shutil.ignore_patterns("reserve"))
    with Repository.open(path) as repository:
        if reserve:
            repository.directory.reserve.take(repository.index.size_on_disk())
            assert repository.directory.reserve.path.exists()
    return path


def run(path: Path, verb: str, folder: Path, elsewhere: Path) -> subprocess.CompletedProcess[bytes]:
    """A verb as a person calls it."""
    if elsewhere.exists():
        shutil.rmtree(elsewhere)
    arguments = [one.format(folder=folder, elsewhere=elsewhere) for one in VERBS[verb]]
    command = [sys.executable, "-m", "ijfs.cli", "-r", str(path), *arguments]
    environment = {**os.environ, "IJFS_SPARE_S": "0", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, timeout=120, env=environment, check=False)


def lose_index(path: Path) -> None:
    """What a careless clean-up leaves."""
    for file in (path / "index").iterdir():
        file.unlink()


def trial(template: Path, disk: Path, verb: str, left: int, *, reserve: bool = True) -> int:
    """Run a verb with so much room left and check what is promised; its exit code."""
    folder = template.parent / "folder"
    path = place(template, disk, reserve=reserve)
    if verb == "lost index":
        lose_index(path)
    fill(disk, left)
    done = run(path, verb, folder, template.parent / "elsewhere")
    said = done.stderr.decode() + done.stdout.decode()
    where = f"{verb} with {left} bytes left: {done.returncode}, {said}"
    assert done.returncode in (0, 1), where
    assert "unexpected" not in said, where
    assert "Traceback" not in said, where
    assert "may be damaged" not in said, where
    if done.returncode:
        assert "No space left" in said or "no room" in said, where
    empty(disk)
    check_whole(path, verb, where)
    return done.returncode


def check_whole(path: Path, verb: str, where: str) -> None:
    """With room again, all that was there is there; and the verb can be done."""
    with Repository.open(path, damaged=True) as repository:
        if verb == "lost index":
            repository.fsck(repair=True)
        report = repository.fsck()
        assert report.clean, (where, report.damage)
        assert contents(repository, repository.resolve("main")) == KEPT, where
        assert repository.snapshots(), where
    assert not _Environment._shared


def campaign(kinds: list[str], verbs: list[str], step: int) -> None:
    """Every level of every verb; prints how many trials, and where each verb began to find room."""
    began, trials = time.monotonic(), 0
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="ijfs-full-disk-") as name, mounted(kind, Path(name)) as disk:
            template = prepare(Path(name))
            for verb in verbs:
                for reserve in (True, False):
                    left, good, enough = 0, 0, None
                    while good < _ENOUGH:
                        good = good + 1 if trial(template, disk, verb, left, reserve=reserve) == 0 else 0
                        enough = left if good == 1 else enough
                        trials, left = trials + 1, left + step
                        assert left < SIZE // 2, f"{verb} never finds enough room"
                    assert not (reserve and verb in ALWAYS and enough), f"{verb} needs {enough} bytes"
                    print(
                        f"{kind:6} {verb:11} {'with' if reserve else 'without'} the reserve: "
                        f"works from {(enough or 0) >> 10} KiB on",
                        flush=True,
                    )
    print(f"{trials} trials in {time.monotonic() - began:.0f} s: 1 passed, 0 failed")


def prepare(where: Path) -> Path:
    """The repository to copy, and a folder to import."""
    folder = where / "folder"
    folder.mkdir()
    (folder / "noise").write_bytes(random.Random(6).randbytes(150_000))
    (folder / "text").write_bytes(b"a line of text\n" * 3000)
    template = where / "template"
    build(template)
    return template


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", type=int, default=4)
    parser.add_argument("--kind", choices=("ext4", "tmpfs"))
    parser.add_argument("verbs", nargs="*", default=list(VERBS))
    asked = parser.parse_args()
    campaign([asked.kind] if asked.kind else ["tmpfs", "ext4"], asked.verbs, asked.step << 10)


if __name__ == "__main__":
    main()
