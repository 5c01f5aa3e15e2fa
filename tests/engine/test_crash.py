"""The crash matrix: SIGKILL at every write, fsync and commit, and the loss of all that was not synced.

After each, the repository opens, fsck is clean, what was acknowledged is whole, the operation shows wholly or not at
all, and it can be done again; after all of them it shows. The process really dies; the loss of power is played by
cutting files back to what was synced (LMDB's own commits are taken as it gives them).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import crashkit
import pytest
from crashkit import lose_power
from storekit import contents, save

from ijfs_engine import Repository, UnknownNameError

OPERATIONS = ["save", "import", "rm", "gc", "tag", "compact", "rebuild", "mend"]
REPAIRS = ["rebuild", "mend"]


def run(path: Path, operation: str, step: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, crashkit.__file__, str(path), operation, str(step)]
    paths = [str(Path(crashkit.__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def fresh(template: Path, path: Path, operation: str) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, path)
    if operation == "rebuild":
        shutil.rmtree(path / "index")
    if operation == "mend":
        (path / "journal").write_bytes(b"not a journal any more")
    return path


def check(path: Path, operation: str, first: bytes, second: bytes, *, done: bool = False) -> bool:
    """All promises; whether the operation shows. A repair that was not done is repeated first."""
    with Repository.open(path, damaged=operation == "rebuild" and not done) as repository:
        if operation in REPAIRS and not done:
            repository.fsck(repair=True)
        report = repository.fsck()
        assert report.clean, report.damage
        assert contents(repository, first) == crashkit.KEEP
        shown = shows(repository, operation, first, second)
        if not shown or operation not in ("rm", "tag"):
            crashkit.operate(repository, operation)
        save(repository, {"x": b"after the crash" * 300}, branch="after")
        repository.gc()
        assert repository.fsck().clean
        assert contents(repository, first) == crashkit.KEEP
        assert_no_waste(repository)
    return shown


def shows(repository: Repository, operation: str, first: bytes, second: bytes) -> bool:
    heads = repository.refs.branches()
    match operation:
        case "save":
            if heads["main"] == first:
                assert len(repository.snapshots()) == 2
                return False
            assert contents(repository, heads["main"]) == crashkit.NEXT
            return True
        case "import":
            return imported(repository)
        case "rm":
            try:
                repository.snapshot(second)
            except UnknownNameError:
                assert heads["side"] == first
                return True
            assert heads["side"] == second
            assert contents(repository, second)
            return False
        case "tag":
            return bool(repository.refs.tags())
        case _:
            assert heads["main"] == first
            assert contents(repository, second)
            return False


def imported(repository: Repository) -> bool:
    """Whether the second save of the program is there; the first is whole, and so is the second if it is."""
    head = repository.snapshot(repository.resolve("program"))
    reader = repository.reader()
    for snapshot in [head, *map(repository.snapshot, head.parents)]:
        images = crashkit.AFTER if snapshot.message == "after" else crashkit.BEFORE
        for name, data in images.items():
            assert reader.open(reader.lookup(snapshot.root, f"images/{name}")).read(0, 1 << 30) == data
    if head.message == "before":
        assert len(repository.snapshots()) == 3
        return False
    for name, data in crashkit.FILES.items():
        entry = reader.lookup(head.root, f"files/{name}")
        assert (reader.open(entry).read(0, 1 << 30) if entry.content else b"") == data
    return True


def assert_the_journal_tells_the_same(path: Path, work: Path) -> None:
    """A crash leaves a line in the journal that was never acknowledged. Neither gc, which takes the packs it names, nor
    a shorter line in its place may let it count when the index is lost later."""
    for change in (Repository.gc, lambda repository: repository.refs.set_tag("t", repository.resolve("side"))):
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        with Repository.open(copy) as repository:
            change(repository)
            before = names(repository)
        shutil.rmtree(copy / "index")
        with Repository.open(copy, damaged=True) as repository:
            repository.fsck(repair=True)
            assert names(repository) == before


def names(repository: Repository) -> tuple[object, ...]:
    listed = {snapshot.id for snapshot in repository.snapshots()}
    return repository.refs.branches(), repository.refs.tags(), listed


def assert_no_waste(repository: Repository) -> None:
    """gc found the space that the crash lost: packs hold little but what du counts."""
    on_disk = sum(path.stat().st_size for path in repository.directory.packs.iterdir())
    assert on_disk <= repository.du().total.stored * 1.3 + 64 * 8
    assert list(repository.directory.sessions.iterdir()) == []


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_step_loses_nothing(tmp_path: Path, operation: str, power: bool) -> None:
    template = tmp_path / "template"
    first, second = crashkit.prepare(template, operation)
    path = tmp_path / "repo"
    whole = run(fresh(template, path, operation), operation, 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps >= 3
    seen = set()
    for step in range(1, steps + 1):
        died = run(fresh(template, path, operation), operation, step)
        assert died.returncode == -signal.SIGKILL, died.stderr
        if power:
            lose_power(path)
        if operation in ("save", "rm", "tag"):
            assert_the_journal_tells_the_same(path, tmp_path)
        seen.add(check(path, operation, first.id, second.id))
    if power:
        run(fresh(template, path, operation), operation, 0)
        lose_power(path)
        shown = check(path, operation, first.id, second.id, done=True)
        assert shown or operation in ("gc", "compact", *REPAIRS), "what was acknowledged is lost"
    if operation in ("save", "import"):
        assert seen == {False, True}
    if operation in ("rm", "tag"):
        assert seen == {False, True}, "what the journal has whole shows"
