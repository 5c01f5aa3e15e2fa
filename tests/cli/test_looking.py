"""A verb that only looks, and a dry run, leave the repository as it was: every file, byte and time of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import Ijfs

from ijfs_engine import Repository

# LMDB's table of readers: who reads says so there, or a writer would reuse what is being read. It holds nothing else.
READERS = "index/lock.mdb"

LOOKING = [
    ["log"],
    ["log", "-n", "1"],
    ["tree"],
    ["show", "main"],
    ["ls", "-lR", "main"],
    ["cat", "main", "files/a"],
    ["diff", "main~1", "main"],
    ["du"],
    ["stats"],
    ["ps"],
    ["branch"],
    ["tag"],
    ["fsck"],
    ["fsck", "--quick"],
    ["gc", "--dry-run"],
    ["prune", "--dry-run", "--keep-last", "1"],
    ["rm", "--dry-run", "main"],
    ["doctor"],
    ["completion", "bash"],
    ["logs", "nobody"],
    ["base", "list"],
    ["base", "diff", "nothing"],
    ["kernel", "list"],
    ["cp", "main:files/a", "-"],
    ["cp", "main:files", "-"],
    ["--json", "log"],
    ["--json", "ps"],
    ["--json", "gc", "--dry-run"],
    ["-v", "show", "main"],
    ["diff", "--memory", "main~1", "main"],
    ["stop", "nobody"],
    ["save", "nobody"],
    ["rm", "nothing-of-that-name"],
    ["show", "nothing-of-that-name"],
]

LOOKING_AT_DAMAGE = [
    *(["log"], ["show", "main"], ["cat", "main", "files/a"], ["du"], ["stats"], ["ps"], ["fsck"], ["fsck", "--quick"]),
    *(["gc", "--dry-run"], ["prune", "--dry-run", "--keep-last", "1"], ["rm", "--dry-run", "main"], ["doctor"]),
]


def listing(repository: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a directory: kinds, modes, owners, times of change, bytes."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, directories, files in os.walk(repository):
        for path in (Path(folder), *(Path(folder, name) for name in (*directories, *files))):
            info = path.lstat()
            data = hashlib.sha256(path.read_bytes()).digest() if stat.S_ISREG(info.st_mode) else b""
            times = (info.st_mtime_ns, info.st_ctime_ns)
            found[str(path.relative_to(repository))] = (
                info.st_mode,
                info.st_uid,
                info.st_size,
                info.st_nlink,
                *times,
                data,
            )
    found.pop(READERS, None)
    return found


@pytest.fixture
def watched(repo: Path, tmp_path: Path, ijfs: Ijfs) -> Path:
    """A repository with two snapshots, a dropped one, what dead processes left, and somebody's own files."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for content in ("one", "two", "three"):
        (tree / "a").write_text(content * 5000)
        assert ijfs("import", tree).code == 0
    assert ijfs("branch", "-f", "main", "main~1").code == 0
    for directory in ("pins", "sessions"):
        for name in ("12-0123456789ab", "notes", ".12-0123456789ab.swp"):
            (repo / directory / name).write_bytes(b"left behind")
    (repo / "packs" / "notes").write_text("somebody's own")
    (repo / "packs" / "00000077.pack").touch()
    (repo / "live").mkdir(exist_ok=True)
    (repo / "live" / "backup").mkdir()
    (repo / "live" / "backup" / "precious").write_text("somebody's own")
    os.utime(repo / "live" / "backup", (0, 0))
    (repo / "live" / "elsewhere").symlink_to(tree)
    return repo


def test_a_verb_that_only_looks_writes_nothing(watched: Path, ijfs: Ijfs) -> None:
    before = listing(watched)
    for verb in LOOKING:
        result = ijfs(*verb)
        assert "InternalError" not in result.err + result.out, result
        assert "Traceback" not in result.err, result
        assert result.code != 2, result
        assert listing(watched) == before, verb


def _lose_index(repo: Path) -> None:
    shutil.rmtree(repo / "index")


def _lose_index_file(repo: Path) -> None:
    (repo / "index/data.mdb").unlink()


def _tear_index(repo: Path) -> None:
    data = (repo / "index/data.mdb").read_bytes()
    (repo / "index/data.mdb").write_bytes(data[:4096] + bytes(len(data) - 4096))


def _lose_format(repo: Path) -> None:
    (repo / "format").unlink()


def _cut_journal(repo: Path) -> None:
    os.truncate(repo / "journal", (repo / "journal").stat().st_size // 2)


def _lose_pack(repo: Path) -> None:
    (repo / "packs/00000001.pack").unlink()


def _add_noise_to_journal(repo: Path) -> None:
    with (repo / "journal").open("ab") as file:
        file.write(os.urandom(5000))


@pytest.mark.parametrize(
    "damage",
    [_add_noise_to_journal, _lose_index, _lose_index_file, _tear_index, _lose_format, _cut_journal, _lose_pack],
)
def test_nor_does_it_where_something_is_damaged(watched: Path, ijfs: Ijfs, damage: Callable[[Path], None]) -> None:
    damage(watched)
    before = listing(watched)
    for verb in LOOKING_AT_DAMAGE:
        result = ijfs(*verb)
        assert "InternalError" not in result.err + result.out, result
        assert listing(watched) == before, verb


def test_an_export_and_a_mount_write_nothing_into_the_repository(watched: Path, tmp_path: Path, ijfs: Ijfs) -> None:
    before = listing(watched)
    assert ijfs("export", "main", tmp_path / "out").code == 0
    assert listing(watched) == before
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there or not ours: the mount was not tried")
    (tmp_path / "mount").mkdir()
    assert ijfs("mount", tmp_path / "mount").code == 0
    try:
        assert (tmp_path / "mount" / "branches" / "main" / "files" / "a").read_bytes() == b"two" * 5000
        assert listing(watched) == before
    finally:
        assert ijfs("umount", tmp_path / "mount").code == 0
    assert listing(watched) == before


def test_gc_clears_what_the_dead_left_and_nothing_else(watched: Path, ijfs: Ijfs) -> None:
    assert ijfs("gc").code == 0
    assert (
        sorted(os.listdir(watched / "pins"))
        == sorted(os.listdir(watched / "sessions"))
        == [
            ".12-0123456789ab.swp",
            "notes",
        ]
    )
    assert (watched / "packs" / "notes").exists()
    assert not (watched / "packs" / "00000077.pack").exists()
    with Repository.open(watched) as repository:
        assert repository.fsck().clean
