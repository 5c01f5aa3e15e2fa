"""Snapshots whose parent is damaged: made anew, so that they are whole, and heal what has the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from criu_images import image_set
from storekit import save

from ijfs_engine import CorruptError, Entry, ObjectId, Repository, Snapshot, UnknownNameError, import_directory
from ijfs_engine.storage.known_damage import harmed
from ijfs_engine.storage.session import Session

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


# --- packs that are not in the directory any more


def take_away(path: Path, how: str) -> None:
    """As a person does; "moved": it has a name still, elsewhere."""
    path.unlink() if how == "removed" else path.rename(path.parent.parent / "elsewhere")


def check_unharmed(repository: Repository, *snapshots: Snapshot) -> None:
    """By a fresh look from another process's view: nothing of it is open there."""
    with Repository.open(repository.path) as other:
        hurt = {ident for one in other.fsck().damage for ident in one.snapshots}
        assert not hurt & {one.id for one in snapshots}
        for one in snapshots:
            assert contents(other, one)


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_pack_that_is_gone_counts_for_no_save_although_it_is_open(
    saved: tuple[Repository, Snapshot], how: str
) -> None:
    repository, first = saved
    contents(repository, first)
    take_away(pack(repository), how)
    with pytest.raises(CorruptError, match="is missing"):
        store(repository, first.id)
    for parents in ([], [first.id]):
        check_unharmed(repository, store(repository, *parents, anew=bool(parents)))


def test_what_a_save_of_no_parent_finds_in_a_pack_that_is_gone_it_stores_again(
    saved: tuple[Repository, Snapshot], tmp_path: Path
) -> None:
    repository, first = saved
    contents(repository, first)
    pack(repository).unlink()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "large").write_bytes(NOISE)
    snapshot = import_directory(repository, tmp_path / "source")
    with Repository.open(repository.path) as other:
        entry = other.reader().lookup(snapshot.root, "files/large")
        assert other.reader().open(entry).read(0, entry.size) == NOISE


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_the_next_save_finds_nothing_in_that_pack_either(saved: tuple[Repository, Snapshot], how: str) -> None:
    """A page that is again as it was before the loss: the index knows it, and nothing has it."""
    repository, first = saved
    path = pack(repository)
    contents(repository, first)
    path.unlink() if how == "gone" else spoil(path, 64, path.stat().st_size - 64)
    changed = random.Random(9).randbytes(len(NOISE))
    with repository.begin([first.id], anew=True) as writer:
        writer.add_file("large", changed)
        writer.add_file("dir/small", OTHER)
        second = writer.commit(branch="main")
    third = store(repository, second.id)
    check_unharmed(repository, second, third)
    before = sum(one.stat().st_size for one in path.parent.iterdir())
    fourth = store(repository, third.id)
    assert sum(one.stat().st_size for one in path.parent.iterdir()) < before + 20_000
    repository.fsck(repair=True)
    check_unharmed(repository, second, third, fourth)


def test_a_pack_that_goes_while_a_save_runs_counts_for_nothing(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    with repository.begin([first.id]) as writer:
        writer.add_file("large", NOISE)
        pack(repository).unlink()
        with pytest.raises(CorruptError, match="while this was being stored"):
            writer.commit(branch="main")
    second = store(repository, first.id, anew=True)
    assert repository.refs.branches() == {"main": second.id}
    check_unharmed(repository, second)


def test_a_pack_that_gc_removes_while_a_save_runs_is_none_that_is_gone(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    import_of(repository, random.Random(10).randbytes(300_000), "doomed")
    repository.refs.delete_branch("doomed")
    with repository.session():
        repository.gc()  # condemns, and waits with the rest for this one to end
    with repository.begin([first.id]) as writer:
        writer.add_file("large", NOISE)
        writer.add_file("dir/small", OTHER)
        with Repository.open(repository.path) as other:
            assert other.gc().packs_removed == 1
        second = writer.commit(branch="main")
    check_unharmed(repository, first, second)


def import_of(repository: Repository, data: bytes, branch: str) -> Snapshot:
    with repository.begin() as writer:
        writer.add_file("other", data)
        return writer.commit(branch=branch)


def test_a_pack_that_others_need_leaves_a_save_as_it_is(saved: tuple[Repository, Snapshot]) -> None:
    """Nothing is made anew for it, and nothing that only it had is counted."""
    repository, first = saved
    data = random.Random(11).randbytes(300_000)
    import_of(repository, data, "other")
    pack(repository).unlink()
    with repository.begin([first.id]) as writer:
        assert not writer.anew
        writer.add_file("large", NOISE)
        writer.add_file("dir/small", OTHER)
        second = writer.commit(branch="main")
    assert second.added is not None
    assert second.added < 20_000
    third = import_of(repository, data, "again")
    with Repository.open(repository.path) as fresh:
        entry = fresh.reader().lookup(third.root, "other")
        assert fresh.reader().open(entry).read(0, entry.size) == data
    check_unharmed(repository, first, second)


def test_a_repair_of_what_is_whole_writes_nothing(saved: tuple[Repository, Snapshot]) -> None:
    index = saved[0].path / "index" / "data.mdb"
    before = index.read_bytes()
    assert saved[0].fsck(repair=True).clean
    assert index.read_bytes() == before


def test_packs_that_are_put_back_are_trusted_again(saved: tuple[Repository, Snapshot]) -> None:
    repository, first = saved
    path = pack(repository)
    take_away(path, "moved")
    second = store(repository, first.id, anew=True)
    (path.parent.parent / "elsewhere").rename(path)
    assert not repository.fsck(repair=True).damage
    with repository.begin([first.id]) as writer:
        assert type(writer._session) is Session
    check_unharmed(repository, first, second)


def test_a_parent_whose_records_are_whole_and_whose_chunks_are_gone_is_not_built_upon(repository: Repository) -> None:
    """They stand in another pack: only the rows of its chunks tell."""
    save(repository, {"same": OTHER[:900]}, branch="first")
    path = pack(repository)
    second = save(repository, {"same": OTHER[:900], "more": b"more"}, branch="second")
    path.unlink()
    with pytest.raises(CorruptError, match="what is gone: 1 pack"):
        repository.begin([second.id])
    repository.refs.delete_branch("first")
    with repository.begin([second.id], anew=True) as writer:
        writer.add_file("same", OTHER[:900])
        third = writer.commit()
    with repository.begin([third.id]) as writer:
        assert not writer.anew


@pytest.mark.parametrize("how", ["spoiled", "gone"])
def test_a_parent_of_which_a_repair_let_go_is_not_built_upon(repository: Repository, how: str) -> None:
    """Pages that are as they were are taken over from it without a look: the new snapshot would be harmed like it."""
    memory = random.Random(1).randbytes(400 * 4096)

    def saved_again(parent: Snapshot | None, data: bytes, *, anew: bool = False) -> Snapshot:
        with repository.begin([parent.id] if parent else [], anew=anew) as writer:
            writer.add_images("images", dict(image_set({7: {0x7F00_0000_0000: data}})))
            return writer.commit(branch="main")

    first = saved_again(None, memory)
    path = min((repository.path / "packs").glob("*.pack"))  # the other has fingerprints
    spoil(path, 300_000, 400) if how == "spoiled" else path.unlink()
    assert repository.fsck(repair=True).damage
    changed = memory[:4096] + b"changed " * 512 + memory[8192:]
    with pytest.raises(CorruptError):
        saved_again(first, changed)
    second = saved_again(first, changed, anew=True)
    third = saved_again(second, memory)
    assert third.added is not None
    assert third.added < 50_000
    report = repository.fsck()
    assert not {ident for one in report.damage for ident in one.snapshots} & {second.id, third.id}
    if how == "spoiled":
        assert report.clean
        assert saved_again(first, changed).parents == (first.id,)
        assert harmed(repository.index) >= {first.id}
        repository.fsck(repair=True)
        assert harmed(repository.index) == frozenset()


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
