"""Snapshots whose parent is damaged: made anew, so that they are whole, and heal what has the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijfs_engine import CorruptError, Entry, ObjectId, Repository, Snapshot, UnknownNameError, import_directory

NOISE = random.Random(7).randbytes(900_000)
OTHER = random.Random(8).randbytes(70_000)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[Repository, Snapshot]]:
    """A repository in tmp_path/"repo" with one snapshot of a large file and a small one."""
    with Repository.init(tmp_path / "repo") as repository:
        yield repository, store(repository)


def store(repository: Repository, *parents: ObjectId, anew: bool = False) -> Snapshot:
    with repository.begin(parents, anew=anew) as writer:
        writer.add_file("large", NOISE)
        writer.add_file("dir/small", OTHER)
        return writer.commit(branch="main")


def pack(repository: Repository) -> Path:
    """The newest pack with data."""
    return max((repository.path / "packs").glob("*.pack"))


def spoil(path: Path, offset: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * length)


def contents(repository: Repository, snapshot: Snapshot) -> tuple[bytes, bytes]:
    reader = repository.reader()
    entries = [reader.lookup(snapshot.root, path) for path in ("large", "dir/small")]
    large, small = (reader.open(entry).read(0, entry.size) for entry in entries)
    return large, small


def test_what_cannot_be_read_is_stored_again_and_heals_what_needs_it(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    spoil(pack(repository), 200_000, 3)
    with pytest.raises(CorruptError):
        contents(repository, first)
    second = store(repository, first.id, anew=True)
    assert second.parents == (first.id,)
    assert second.added is not None
    assert second.added < len(NOISE) // 2  # one chunk of many
    for snapshot in (first, second):
        assert contents(repository, snapshot) == (NOISE, OTHER)
    assert not repository.fsck().damage


@pytest.mark.parametrize("gone", [True, False])
def test_a_parent_of_which_nothing_is_left_does_not_stand_in_the_way(
    saved: tuple[Repository, Snapshot], *, gone: bool
) -> None:
    repository, first = saved
    path = pack(repository)
    contents(repository, first)  # so that the pack is open, and can be read when it is gone
    path.unlink() if gone else spoil(path, 64, path.stat().st_size - 64)
    second = store(repository, first.id, anew=True)
    repository.forget_removed()
    assert contents(repository, second) == (NOISE, OTHER)
    assert repository.resolve("main") == second.id


def test_what_was_stored_anew_is_found_by_an_index_that_is_built_anew(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    path = pack(repository)
    spoil(path, 64, path.stat().st_size - 64)
    second = store(repository, first.id, anew=True)
    repository.close()
    shutil.rmtree(repository.path / "index")
    with Repository.open(repository.path, damaged=True) as again:
        again.fsck(repair=True)
        assert contents(again, second) == (NOISE, OTHER)


def test_gc_after_it_keeps_the_sound_copy(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    spoil(pack(repository), 200_000, 3)
    second = store(repository, first.id, anew=True)
    repository.gc()
    assert contents(repository, second) == (NOISE, OTHER)
    assert not repository.fsck().damage


def test_a_stored_file_is_reused_only_where_it_is_whole(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    spoil(pack(repository), 200_000, 3)
    reader = repository.reader()
    large, small = (reader.lookup(first.root, path) for path in ("large", "dir/small"))
    with repository.begin([first.id], anew=True) as writer:
        assert [writer.is_whole(entry) for entry in (large, small)] == [False, True]
        writer.reuse("small", small)
        snapshot = writer.commit()
    entry: Entry = repository.reader().lookup(snapshot.root, "small")
    assert repository.reader().open(entry).read(0, entry.size) == OTHER


def test_a_parent_has_to_be_listed(saved: tuple[Repository, Snapshot]) -> None:
    with pytest.raises(UnknownNameError):
        saved[0].begin([bytes(32)], anew=True)


def test_an_import_says_what_of_its_parent_is_damaged(saved: tuple[Repository, Snapshot], tmp_path: Path) -> None:
    repository, first = saved
    path = pack(repository)
    spoil(path, 64, path.stat().st_size - 64)
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(NOISE)
    said: list[CorruptError] = []
    snapshot = import_directory(repository, source, parents=[first.id], on_damage=said.append)
    assert len(said) == 1
    entry = repository.reader().lookup(snapshot.root, "files/large")
    assert repository.reader().open(entry).read(0, entry.size) == NOISE
