"""Working sets: found for a snapshot or its nearest ancestor, kept by gc while it is listed, never needed."""

from __future__ import annotations

import pytest
from storekit import contents, pack_paths, save

from ijfs_engine import Repository, UnknownNameError
from ijfs_engine.storage.working_sets import MAX_BYTES


def test_the_latest_one_of_a_snapshot_is_found(repository: Repository) -> None:
    one = save(repository, {"a": b"1"}, branch="b")
    assert repository.working_set(one.id) is None
    repository.put_working_set(one.id, b"first")
    repository.put_working_set(one.id, b"second" * 1000)
    assert repository.working_set(one.id) == b"second" * 1000
    with Repository.open(repository.path) as other:
        assert other.working_set(one.id) == b"second" * 1000


def test_a_descendant_uses_its_nearest_ancestors(repository: Repository) -> None:
    first = save(repository, {"a": b"1"}, branch="b")
    second = save(repository, {"a": b"2"}, branch="b", parents=[first.id])
    third = save(repository, {"a": b"3"}, branch="b", parents=[second.id])
    apart = save(repository, {"a": b"4"}, branch="c")
    repository.put_working_set(first.id, b"of the first")
    assert repository.working_set(third.id) == b"of the first"
    repository.put_working_set(second.id, b"of the second")
    assert repository.working_set(third.id) == b"of the second"
    assert repository.working_set(first.id) == b"of the first"
    assert repository.working_set(apart.id) is None
    repository.remove(second.id)
    assert repository.working_set(third.id) == b"of the first"


def test_gc_keeps_it_while_the_snapshot_is_listed_and_takes_it_afterwards(repository: Repository) -> None:
    first = save(repository, {"a": b"1"}, branch="b")
    second = save(repository, {"a": b"2"}, branch="b", parents=[first.id])
    repository.put_working_set(first.id, b"old")
    repository.put_working_set(second.id, b"new")
    repository.gc()
    assert repository.working_set(first.id) == b"old", "not a head, but listed"
    repository.remove(first.id)
    repository.gc()
    assert repository.store.sidecars([first.id, second.id]) == [None, b"new"]
    assert repository.fsck().clean


def test_neither_identity_nor_contents_depend_on_it(repository: Repository) -> None:
    files = {"a": b"1" * 10_000}
    one = save(repository, files, branch="b")
    before = set(pack_paths(repository))
    repository.put_working_set(one.id, b"pages")
    for path in set(pack_paths(repository)) - before:
        path.write_bytes(path.read_bytes()[:70])
    assert repository.working_set(one.id) is None
    assert repository.resolve("b") == one.id
    assert contents(repository, one.id) == files


def test_what_is_no_snapshot_has_none(repository: Repository) -> None:
    with pytest.raises(UnknownNameError):
        repository.put_working_set(bytes(32), b"pages")
    assert repository.working_set(bytes(32)) is None
    one = save(repository, {"a": b"1"}, branch="b")
    with pytest.raises(ValueError, match="at most"):
        repository.put_working_set(one.id, bytes(MAX_BYTES + 1))


def test_a_rebuilt_index_may_have_lost_it_but_nothing_else(repository: Repository) -> None:
    one = save(repository, {"a": b"1"}, branch="b")
    repository.put_working_set(one.id, b"pages")
    path = repository.path
    repository.close()
    (path / "index" / "data.mdb").write_bytes(b"")
    with Repository.open(path, damaged=True) as mended:
        mended.fsck(repair=True)
        assert mended.fsck().clean
        assert mended.working_set(one.id) in (None, b"pages")
        assert contents(mended, one.id) == {"a": b"1"}
