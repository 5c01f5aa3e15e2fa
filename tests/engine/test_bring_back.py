"""A snapshot that was removed can be listed again until gc has taken what it alone had."""

from __future__ import annotations

import shutil

import pytest
import storekit
from storekit import contents, save

from ijfs_engine import LockedError, Repository, UnknownNameError
from ijfs_engine.format.frames import chunk_id
from ijfs_engine.storage.index import CHUNKS
from ijfs_engine.storage.locks import exclusive

OLD = {"a": b"first" * 3000, "b": b"both" * 3000}
NEW = {"a": b"second" * 3000, "b": b"both" * 3000}


def line(repository: Repository) -> tuple[bytes, bytes]:
    """Two snapshots on `main`."""
    first = save(repository, OLD, branch="main").id
    return first, save(repository, NEW, parents=[first], branch="main").id


def test_a_removed_snapshot_comes_back_with_its_place_in_the_history(repository: Repository) -> None:
    first, second = line(repository)
    repository.remove(first)
    assert repository.removed(first.hex()[:8]) == [first]
    assert repository.parents(second) == []
    assert repository.bring_back(first).id == first
    assert repository.parents(second) == [first]
    assert repository.removed(first.hex()[:8]) == []
    assert contents(repository, first) == OLD
    assert not repository.fsck().damage


def test_a_name_says_that_its_snapshot_was_removed_and_how_it_comes_back(repository: Repository) -> None:
    _, second = line(repository)
    repository.remove(second)
    with pytest.raises(UnknownNameError, match="was removed") as caught:
        repository.resolve(second.hex()[:10])
    assert caught.value.hint is not None
    assert f"ijfs branch NAME {second.hex()[:12]}" in caught.value.hint


def test_after_gc_nothing_is_left_to_bring_back(repository: Repository) -> None:
    first, second = line(repository)
    repository.remove(second)
    repository.gc()
    assert repository.removed(second.hex()) == []
    with pytest.raises(UnknownNameError):
        repository.bring_back(second)
    assert contents(repository, first) == OLD


def test_what_gc_condemned_beside_a_session_lives_again(repository: Repository) -> None:
    _, second = line(repository)
    with repository.session():
        repository.remove(second)
        assert repository.gc().chunks_condemned > 0
        repository.bring_back(second)
        repository.refs.set_branch("main", second)
    repository.gc()
    assert contents(repository, second) == NEW
    assert not repository.fsck().damage


def test_not_while_gc_runs(repository: Repository) -> None:
    _, second = line(repository)
    repository.remove(second)
    with exclusive(repository.directory.gc_lock, "gc"), pytest.raises(LockedError):
        repository.bring_back(second)


def test_an_index_that_is_built_anew_knows_that_it_came_back(repository: Repository) -> None:
    _, second = line(repository)
    repository.remove(second)
    repository.bring_back(second)
    repository.refs.set_branch("main", second)
    path = repository.path
    repository.close()
    shutil.rmtree(path / "index")
    with Repository.open(path, damaged=True) as again:
        again.fsck(repair=True)
        assert again.resolve("main") == second
        assert contents(again, second) == NEW


def test_what_was_never_there_or_is_still_listed_does_not_come_back(repository: Repository) -> None:
    first, _ = line(repository)
    for ident in (bytes(32), first):
        with pytest.raises(UnknownNameError):
            repository.bring_back(ident)
    assert repository.removed("xyz") == []


def test_a_parent_that_gc_has_taken_is_not_offered(repository: Repository) -> None:
    first, _ = line(repository)
    repository.remove(first)
    repository.gc()
    assert repository.removed(first.hex()) == []


def test_what_a_gc_that_died_took_a_chunk_of_does_not_come_back(repository: Repository) -> None:
    _, second = line(repository)
    repository.remove(second)
    lost = chunk_id(NEW["a"][: storekit.CHUNK])
    repository.index.write(lambda update: update.delete(CHUNKS, lost))
    with pytest.raises(UnknownNameError, match="gc has taken"):
        repository.bring_back(second)
    assert [one.id for one in repository.snapshots()] != [second]
