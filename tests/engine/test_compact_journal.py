"""The journal is written anew when most of it tells of what is gone, and still says all that anyone can ask it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from storekit import contents, save

from ijfs_engine import Repository
from ijfs_engine.maintenance import compact_journal as compaction
from ijfs_engine.maintenance import gc
from ijfs_engine.maintenance.compact_journal import compact_journal
from ijfs_engine.maintenance.rebuild_index import Rebuilder
from ijfs_engine.storage import disk


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SMALL", 0)
    monkeypatch.setattr(compaction, "NEWEST", 4)


def names(repository: Repository) -> tuple[object, ...]:
    listed = {snapshot.id for snapshot in repository.snapshots()}
    return repository.refs.branches(), repository.refs.tags(), listed, repository.refs.log()


def a_line_of_saves(repository: Repository, count: int) -> None:
    before = None
    for number in range(count):
        made = save(repository, {"a": b"%d" % number * 100}, parents=[before] if before else [], branch="main")
        if before:
            repository.remove(before)
        before = made.id


def rebuilt(repository: Repository, tmp_path: Path) -> tuple[object, ...]:
    """What packs and journal alone say."""
    copy = tmp_path / "copy"
    shutil.copytree(repository.path, copy)
    shutil.rmtree(copy / "index")
    with Repository.open(copy, damaged=True) as opened:
        opened.fsck(repair=True)
        assert opened.fsck().clean
        return names(opened)


def test_a_long_line_leaves_a_short_journal(repository: Repository, tmp_path: Path) -> None:
    kept = save(repository, {"k": b"kept"}, branch="kept")
    repository.refs.set_tag("gone", kept.id)
    repository.refs.delete_tag("gone")
    a_line_of_saves(repository, 60)
    before = names(repository)
    size = repository.directory.journal.stat().st_size
    assert compact_journal(repository)
    assert repository.directory.journal.stat().st_size < size // 3
    after = names(repository)
    assert after[:3] == before[:3]
    assert set(repository.refs.log()) < set(before[3])  # type: ignore[call-overload]
    assert [one.new for one in repository.refs.log() if one.name == "branch/kept"] == [kept.id]
    assert repository.fsck().clean
    assert rebuilt(repository, tmp_path) == after
    assert not compact_journal(repository), "there is nothing to gain any more"
    save(repository, {"a": b"next"}, branch="main")
    assert repository.fsck().clean
    assert contents(repository, kept.id) == {"k": b"kept"}


@pytest.mark.parametrize(("removed", "gain"), [(0, 2), (1, 2), (40, 2), (40, 1000)])
def test_a_dry_run_says_what_the_journal_gives_back(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, removed: int, gain: int
) -> None:
    monkeypatch.setattr(compaction, "_GAIN", gain)
    a_line_of_saves(repository, 60)
    kept = save(repository, {"k": b"kept"}, branch="kept").id
    for number in range(removed):
        save(repository, {"k": b"%d" % number}, parents=[kept], branch="gone")
        repository.refs.delete_branch("gone")
    before = repository.directory.journal.stat()
    size = compaction.size_to_come(repository, *divided(repository))
    freed = compaction.freed_of_journal(repository, *divided(repository))
    promised = repository.gc(dry_run=True)
    assert repository.gc().snapshots_removed == removed
    after = repository.directory.journal.stat()
    assert after.st_size == size
    assert (size < before.st_size) == (gain == 2)
    assert (freed > 0) == (gain == 2)
    assert promised.bytes_before - promised.bytes_after >= freed


def divided(
    repository: Repository,
) -> tuple[frozenset[bytes], frozenset[bytes], dict[bytes, tuple[bytes, ...]]]:
    """What gc keeps and drops of the list, and everybody's parents."""
    collector = gc._Collector(repository, None)
    with repository.index.read() as view:
        heads = collector._heads(view)
    listed = collector._listed()
    collector._learn_parents(listed)
    roots = collector._divide(frozenset(listed), heads)
    return roots.keep, roots.drop, collector._parents


def test_gc_compacts_and_the_line_stays_bounded(repository: Repository) -> None:
    sizes = []
    for _ in range(4):
        a_line_of_saves(repository, 30)
        repository.gc()
        sizes.append(repository.directory.journal.stat().st_size)
    assert max(sizes) <= 1.1 * sizes[0]
    assert repository.fsck().clean


def test_a_deleted_name_stays_deleted(repository: Repository, tmp_path: Path) -> None:
    """An old change led to a snapshot that is listed; the later one that deleted the name has to stay, too."""
    kept = save(repository, {"k": b"kept"}, branch="kept")
    repository.refs.set_branch("gone", kept.id)
    repository.refs.delete_branch("gone")
    a_line_of_saves(repository, 40)
    assert compact_journal(repository)
    assert set(repository.refs.branches()) == {"kept", "main"}
    assert rebuilt(repository, tmp_path) == names(repository)


def test_names_of_any_history_come_out_the_same(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_GAIN", 1)
    rng = random.Random(5)
    made = [save(repository, {"a": b"%d" % number}, branch=f"b{number}").id for number in range(5)]
    for step in range(120):
        name, ident = f"t{rng.randrange(6)}", rng.choice(made)
        if name in repository.refs.tags() and rng.random() < 0.5:
            repository.refs.delete_tag(name)
        elif name not in repository.refs.tags():
            repository.refs.set_tag(name, ident)
        if step % 40 == 39:
            before = names(repository)
            assert compact_journal(repository)
            assert names(repository)[:3] == before[:3]
            assert repository.fsck().clean
    assert rebuilt(repository, tmp_path)[:3] == names(repository)[:3]


class InterruptedHereError(Exception):
    """Stands for a crash where the process has to go on."""


def test_a_compaction_whose_transaction_failed_is_taken_over(repository: Repository, tmp_path: Path) -> None:
    a_line_of_saves(repository, 30)
    before = names(repository)

    def at(step: disk.Step) -> None:
        if step.op == "commit":
            raise InterruptedHereError

    disk.observer = at
    try:
        with pytest.raises(InterruptedHereError):
            compact_journal(repository)
    finally:
        disk.observer = None
    path = repository.path
    repository.close()
    with Repository.open(path) as opened:
        assert names(opened)[:3] == before[:3]
        assert opened.fsck().clean
        assert rebuilt(opened, tmp_path) == names(opened)
        save(opened, {"a": b"next"}, branch="main")
        assert opened.fsck().clean


def test_a_journal_that_says_something_else_is_not_taken_over(repository: Repository) -> None:
    """One with the same last sequence, whole, and of other names: from a copy of the repository, say."""
    a_line_of_saves(repository, 3)
    path, copy = repository.path, repository.path.with_name("copy")
    shutil.copytree(path, copy)
    with Repository.open(copy) as other:
        other.refs.set_tag("a-longer-name", other.resolve("main"))
    repository.refs.set_tag("t", repository.resolve("main"))
    repository.close()
    shutil.copy(copy / "journal", path / "journal")
    with Repository.open(path) as opened:
        assert set(opened.refs.tags()) == {"t"}
        assert not opened.fsck().clean


def test_rebuilder_and_compaction_agree_on_the_sequence(repository: Repository) -> None:
    a_line_of_saves(repository, 30)
    with repository.index.read() as view:
        _, sequence = repository.journal.position(view)
    compact_journal(repository)
    assert Rebuilder(repository)._journal().last == sequence
