"""Repositories that can only be read: on a filesystem that is mounted read-only, or of another user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from storekit import contents, save

from ijfs_engine import CorruptError, PrunePolicy, Repository, Snapshot, StorageError, export_tree

FILES = {"small": b"a few bytes", "large": bytes(range(256)) * 200}
NOBODY = 65534


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(a repository where it can be written, the same under a mount where it cannot)."""
    writable, frozen = tmp_path / "writable", tmp_path / "frozen"
    with Repository.init(writable) as repository:
        first = save(repository, FILES, branch="main", message="first")
        save(repository, {"more": b"more" * 2000}, parents=[first.id], branch="main", message="second")
    frozen.mkdir()
    subprocess.run(["mount", "--bind", writable, frozen], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", frozen], check=True)
        yield writable, frozen
    finally:
        subprocess.run(["umount", frozen], check=True)


@pytest.mark.root
def test_a_repository_that_is_mounted_read_only_can_be_read(frozen: tuple[Path, Path], tmp_path: Path) -> None:
    with Repository.open(frozen[1]) as repository:
        second, first = repository.snapshots()
        assert contents(repository, first.id) == FILES
        assert repository.resolve("main~1") == first.id
        assert repository.parents(second.id) == [first.id]
        assert repository.refs.branches() == {"main": second.id}
        assert len(repository.refs.log()) == 2
        assert repository.working_set(second.id) is None
        assert repository.pins() == []
        assert repository.du().total.stored <= repository.stats().pack_bytes
        assert repository.prune(PrunePolicy(last=1), dry_run=True).removed == [first.id]
        assert repository.gc(dry_run=True).freed == 0
        assert repository.fsck().clean
        export_tree(repository.reader(), first.root, tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == FILES["large"]


CHANGES: dict[str, Callable[[Repository, Snapshot], object]] = {
    "save": lambda repository, head: repository.begin([head.id]),
    "tag": lambda repository, head: repository.refs.set_tag("t", head.id),
    "branch": lambda repository, head: repository.refs.delete_branch("main"),
    "rm": lambda repository, head: repository.remove(head.id),
    "prune": lambda repository, head: repository.prune(PrunePolicy(last=1)),
    "pin": lambda repository, head: repository.pin(head.id, "me"),
    "gc": lambda repository, head: repository.gc(),
    "repair": lambda repository, head: repository.fsck(repair=True),
    "working set": lambda repository, head: repository.put_working_set(head.id, b"order"),
}


@pytest.mark.root
def test_what_would_change_it_is_refused_and_changes_nothing(frozen: tuple[Path, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in frozen[0].rglob("*")}
    with Repository.open(frozen[1]) as repository:
        head = repository.snapshots()[0]
        for change in CHANGES.values():
            with pytest.raises(StorageError, match="can only be read: its filesystem is mounted read-only"):
                change(repository, head)
        assert repository.snapshots()[0] == head
    assert before == {path: path.stat().st_mtime_ns for path in frozen[0].rglob("*")}


@pytest.mark.root
def test_a_writer_elsewhere_is_noticed_once_it_may_have_reused_what_is_being_read(frozen: tuple[Path, Path]) -> None:
    """Without a reader's slot, nothing keeps LMDB's writer from the pages of an old view."""
    tag = "import sys; from ijfs_engine import Repository; r = Repository.open(sys.argv[1]); "
    tag += "[r.refs.set_tag(name, r.resolve('main')) for name in sys.argv[2:]]"

    def write(*tags: str) -> None:
        subprocess.run([sys.executable, "-c", tag, frozen[0], *tags], check=True)

    with Repository.open(frozen[1]) as repository:
        # To open it is a commit, too: of the tables, which are there already.
        with repository.index.read():
            write()
        with pytest.raises(StorageError, match="somebody writes into"), repository.index.read():
            write("one", "two")
        assert set(repository.refs.tags()) == {"one", "two"}


@pytest.mark.root
def test_an_index_that_was_cut_short_is_not_looked_at(frozen: tuple[Path, Path]) -> None:
    os.truncate(frozen[0] / "index" / "data.mdb", 9000)
    with pytest.raises(CorruptError, match="is not in the file"):
        Repository.open(frozen[1])


SCRIPT = """
import os, sys, tempfile
from pathlib import Path
from ijfs_engine import Repository, StorageError, export_tree
with Repository.open(sys.argv[1]) as repository, tempfile.TemporaryDirectory() as target:
    (snapshot,) = repository.snapshots()
    export_tree(repository.reader(), snapshot.root, Path(target))
    with open(target + "/small", "rb") as file:
        print(file.read(), os.fstat(file.fileno()).st_uid == os.geteuid(), repository.fsck().clean)
    try:
        repository.gc()
    except StorageError as error:
        print(error)
"""


@pytest.mark.root
def test_a_repository_of_another_user_can_be_read_if_its_files_can() -> None:
    stranger = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/", "capture_output": True, "text": True}
    if subprocess.run([sys.executable, "-c", "import ijfs_engine"], check=False, **stranger).returncode:  # type: ignore[call-overload]
        pytest.skip("another user cannot read this checkout")
    place = Path(tempfile.mkdtemp(prefix="ijfs-test-", dir="/tmp"))
    try:
        with Repository.init(place / "repo") as repository:
            save(repository, FILES, branch="main")
        run = [sys.executable, "-c", SCRIPT, str(place / "repo")]
        place.chmod(0o755)
        hidden = subprocess.run(run, check=False, **stranger)  # type: ignore[call-overload]
        assert "ermission denied" in hidden.stderr
        for path in (place / "repo", *(place / "repo").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shown = subprocess.run(run, check=False, **stranger)  # type: ignore[call-overload]
        assert shown.stdout.splitlines() == [
            "b'a few bytes' True True",
            f"{place / 'repo'} can only be read: it is not yours to write",
        ], shown.stderr
    finally:
        shutil.rmtree(place)
