"""Numbers of packs: taken by making the file, known to the index with what the pack holds."""

from __future__ import annotations

import pytest
from storekit import contents, pack_paths, put, save

from ijfs_engine import Repository
from ijfs_engine.maintenance import repack
from ijfs_engine.storage import disk, locks
from ijfs_engine.storage.disk import Step


def test_a_small_save_waits_for_the_index_once(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Step] = []
    monkeypatch.setattr(disk, "observer", steps.append)
    with repository.begin() as writer:
        writer.add_file("f", b"x" * 100)
        writer.commit(branch="main")
    assert [step.op for step in steps].count("commit") == 1
    assert [step.op for step in steps if step.op in ("fsync", "fsync_dir")] == ["fsync", "fsync_dir", "fsync"]


def test_sessions_side_by_side_have_packs_of_their_own(repository: Repository) -> None:
    with repository.session() as one, repository.session() as other:
        put(one, b"of one" * 100)
        put(other, b"of another" * 100)
        assert len(pack_paths(repository)) == 2
        save(repository, {"o": b"of another" * 100}, branch="o", session=other)
        save(repository, {"f": b"of one" * 100}, branch="f", session=one)
    assert contents(repository, repository.resolve("f")) == {"f": b"of one" * 100}
    assert contents(repository, repository.resolve("o")) == {"o": b"of another" * 100}
    assert repository.fsck().clean


def test_the_number_of_a_pack_that_the_index_knew_is_not_given_again(repository: Repository) -> None:
    save(repository, {"f": b"first" * 100}, branch="main")
    before = pack_paths(repository)
    repository.remove(repository.resolve("main"))
    repository.gc()
    assert not set(pack_paths(repository)) & set(before)
    save(repository, {"f": b"second" * 100}, branch="main")
    assert not set(pack_paths(repository)) & set(before)


def test_gc_does_not_take_a_pack_for_the_one_whose_number_it_has(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session of the first gives up while gc looks at it, and another begins one of the same number."""
    first, second = repository.session(), repository.session()
    put(first, b"given up" * 100)
    (path,), lock = pack_paths(repository), locks._lock

    def late(fd: int, how: int) -> bool:
        first.abort()
        put(second, b"kept" * 100)
        return lock(fd, how)

    monkeypatch.setattr(locks, "_lock", late)
    repack.remove_orphans(repository)
    assert pack_paths(repository) == [path]
    saved = save(repository, {"f": b"kept" * 100}, session=second)
    assert contents(repository, saved.id) == {"f": b"kept" * 100}
