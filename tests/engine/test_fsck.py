"""fsck: names what is damaged and whom it hurts; repair loses nothing that could be kept; packs rebuild the index."""

from __future__ import annotations

import os
import random
import shutil
import zlib
from contextlib import nullcontext
from pathlib import Path

import pytest
from storekit import contents, damage, frame_of, pack_paths, put, put_against, save

from ijfs_engine import CorruptError, LockedError, Repository, StorageError
from ijfs_engine.format.frames import HEADER, HEADER_SIZE, Codec, FrameKind, chunk_id
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import encode_leaf
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import CHUNKS, REFS, SNAPSHOTS
from ijfs_engine.storage.locks import LockFile
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, mend_pack_header

RNG = random.Random(11)


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


def names(repository: Repository) -> object:
    """All that names say: snapshots, refs, their log."""
    return (
        repository.snapshots(),
        repository.refs.branches(),
        repository.refs.tags(),
        repository.refs.log(),
    )


def busy_repository(repository: Repository) -> dict[bytes, dict[str, bytes]]:
    """A tree with a removed snapshot, a tag, a moved branch, a difference chunk and garbage; what must be readable."""
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    first = save(repository, {"a": noise(30_000), "base": base}, branch="main", message="one")
    second = save(repository, {"b": noise(9000)}, parents=[first.id], branch="main", message="two")
    with repository.session() as session:
        put_against(session, near, base, chunk_id(base))
        third = save(repository, {"near": near}, parents=[second.id], branch="main", session=session)
    repository.refs.set_tag("v1", first.id)
    repository.remove(second.id)
    save(repository, {"gone": noise(5000)}, branch="gone")
    repository.refs.delete_branch("gone")
    return {one.id: contents(repository, one.id) for one in (first, third)}


def lose_index(repository: Repository) -> Repository:
    path = repository.path
    repository.close()
    shutil.rmtree(path / "index")
    with pytest.raises(CorruptError) as caught:
        Repository.open(path)
    assert "fsck --repair" in (caught.value.hint or "")
    return Repository.open(path, damaged=True)


def test_a_sound_repository_is_clean(repository: Repository) -> None:
    busy_repository(repository)
    report = repository.fsck()
    assert report.clean
    assert report.bytes_read == sum(path.stat().st_size for path in pack_paths(repository))
    assert repository.fsck(data=False).clean


def test_a_damaged_chunk_is_named_with_its_files(repository: Repository) -> None:
    bad, good = noise(9000), noise(9000)
    hurt = save(repository, {"bad": bad, "good": good}, branch="hurt")
    save(repository, {"good": good}, branch="whole")
    path, offset = frame_of(repository, chunk_id(bad[:4096]))
    damage(path, offset + HEADER_SIZE + 10)
    (finding,) = repository.fsck().damage
    assert (finding.what, finding.id) == ("frame", chunk_id(bad[:4096]))
    assert finding.where == f"{path.name} at {offset}"
    assert finding.snapshots == (hurt.id,)
    assert finding.files == (f"{hurt.id.hex()}:bad",)


@pytest.mark.parametrize("byte", [0, 8, 16, 30])
def test_a_damaged_header_hides_one_frame_only(repository: Repository, byte: int) -> None:
    snapshot = save(repository, {"f": noise(60_000)}, branch="main")
    middle = repository.store.leaves([leaf for leaf, _ in repository.store.file(
        repository.store.tree(snapshot.root).entries[0].content or b"").leaves()])[1].chunk_ids()[1]  # fmt: skip
    path, offset = frame_of(repository, middle)
    damage(path, offset + byte)
    assert [finding.id for finding in repository.fsck().damage] == [middle]


def test_damage_to_what_is_dead_hurts_nobody(repository: Repository) -> None:
    dead = noise(4000)
    old = save(repository, {"dead": dead, "kept": noise(100_000)}, branch="main")
    path, offset = frame_of(repository, chunk_id(dead))
    save(repository, {"kept": contents(repository, old.id)["kept"]}, branch="main")
    repository.remove(old.id)
    repository.gc()
    assert path in pack_paths(repository)
    damage(path, offset + HEADER_SIZE + 1)
    assert repository.fsck().clean


def test_a_repaired_chunk_heals_with_the_next_save(repository: Repository) -> None:
    data = noise(9000)
    hurt = save(repository, {"f": data}, branch="main")
    path, offset = frame_of(repository, chunk_id(data[:4096]))
    damage(path, offset + HEADER_SIZE + 10)
    report = repository.fsck(repair=True)
    assert not report.clean
    assert report.repaired
    with pytest.raises(CorruptError):
        contents(repository, hurt.id)
    save(repository, {"again": data}, branch="other")
    assert contents(repository, hurt.id) == {"f": data}
    assert repository.fsck().clean


def test_a_damaged_object_heals_too(repository: Repository) -> None:
    files = {"f": noise(9000)}
    hurt = save(repository, files, branch="main")
    path, offset = frame_of(repository, hurt.root)
    damage(path, offset + HEADER_SIZE + 1)
    (finding,) = repository.fsck(repair=True).damage
    assert (finding.id, finding.snapshots) == (hurt.root, (hurt.id,))
    save(repository, files, branch="other")
    assert contents(repository, hurt.id) == files


def test_what_was_stored_against_a_damaged_base_heals_with_it(repository: Repository) -> None:
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    with repository.session() as session:
        put_against(session, near, base, put(session, base))
        hurt = save(repository, {"near": near}, branch="main", session=session)
    path, offset = frame_of(repository, chunk_id(base))
    damage(path, offset + HEADER_SIZE + 10)
    assert {finding.id for finding in repository.fsck(repair=True).damage} >= {chunk_id(base)}
    save(repository, {"near": near}, branch="main")
    assert contents(repository, hurt.id) == {"near": near}
    assert repository.fsck().clean


def test_another_copy_takes_the_place_of_a_damaged_one(repository: Repository) -> None:
    data = noise(4096)
    left, right = repository.session(), repository.session()
    put(left, data)
    put(right, data)
    snapshot = save(repository, {"f": data}, branch="l", session=left)
    save(repository, {"f": data}, branch="r", session=right)
    path, offset = frame_of(repository, chunk_id(data))
    damage(path, offset + HEADER_SIZE + 10)
    report = repository.fsck(repair=True)
    assert report.repaired == ["took another copy of 1 damaged frame"]
    assert contents(repository, snapshot.id) == {"f": data}
    assert repository.fsck().clean


def test_a_snapshot_whose_record_is_damaged_hides_no_other(repository: Repository) -> None:
    hurt = save(repository, {"f": noise(3000)}, branch="hurt")
    whole = save(repository, {"g": noise(3000)}, branch="whole")
    path, offset = frame_of(repository, hurt.id)
    damage(path, offset + HEADER_SIZE + 1)
    assert repository.snapshots() == [whole]
    assert repository.fsck().damage[0].snapshots == (hurt.id,)
    repository.remove(hurt.id)
    repository.gc()
    assert repository.fsck().clean


def test_a_leaf_that_points_outside_its_chunk_is_found(repository: Repository) -> None:
    import struct

    data = noise(4096)
    with repository.session() as session:
        put(session, data)
        leaf = struct.pack("<II", 1, 1) + chunk_id(data) + struct.pack("<III", 0, 4000, 500)
        ident = session.put_object(FrameKind.LEAF, leaf)
        from ijfs_engine.format.records import Entry, Tree, encode_tree

        tree = Tree((Entry(b"f", "f", 0o644, 0, 0, 0, size=500, content=ident),))
        session.commit_snapshot(session.put_object(FrameKind.TREE, encode_tree(tree)), branch="main")
    assert [finding.id for finding in repository.fsck().damage] == [ident]
    assert encode_leaf(repository.store.leaf(ident)) == leaf


def test_a_file_whose_only_chunk_is_gone_is_found(repository: Repository) -> None:
    data = noise(100)
    snapshot = save(repository, {"f": data}, branch="main")
    repository.index.write(lambda update: update.delete(CHUNKS, chunk_id(data)))
    (finding,) = repository.fsck().damage
    assert (finding.id, finding.files) == (chunk_id(data), (f"{snapshot.id.hex()}:f",))


def test_a_chunk_that_is_gone_is_named_once_whoever_names_it(repository: Repository) -> None:
    """By two leaves, by a tree, and by a difference to a difference, which its row alone leads to."""
    base, shared = noise(4096), noise(4096)
    near, nearer = bytes([base[0] ^ 1]) + base[1:], bytes([base[0] ^ 2]) + base[1:]
    with repository.session() as session:
        put_against(session, near, base, put(session, base))
        put_against(session, nearer, near, chunk_id(near), 1)
        files = {"a": shared + noise(4096), "b": shared + noise(8192), "c": shared, "nearer": nearer}
        save(repository, files, branch="main", session=session)
    gone = {chunk_id(shared), chunk_id(base)}
    repository.index.write(lambda update: [update.delete(CHUNKS, ident) for ident in gone])
    damage = {finding.id: finding for finding in repository.fsck(data=False).damage}
    assert set(damage) == {chunk_id(shared), chunk_id(near)}
    assert {name.rpartition(":")[2] for name in damage[chunk_id(shared)].files} == {"a", "b", "c"}
    assert [name.rpartition(":")[2] for name in damage[chunk_id(near)].files] == ["nearer"]


def test_a_row_that_mistakes_its_frame_is_found_and_mended(repository: Repository) -> None:
    """By its place, or by its length: one that is read a byte short is no frame."""
    data, other = noise(5000), noise(3000)
    snapshot = save(repository, {"f": data[:4000], "g": other}, branch="main")
    ids = chunk_id(data[:4000]), chunk_id(other)
    with repository.index.read() as view:
        places = [Place.decode(row) for row in view.get_many(CHUNKS, ids) if row]
    moved = places[0]._replace(offset=places[0].offset + 8), places[1]._replace(span=places[1].span - 1)
    for ident, place in zip(ids, moved, strict=True):
        repository.index.write(lambda update, ident=ident, place=place: update.put(CHUNKS, ident, place.encode()))  # type: ignore[misc]
    damage = repository.fsck(repair=True).damage
    assert {(one.what, one.id, one.message) for one in damage} == {
        ("frame", ids[0], "no such frame is where the index says"),
        ("index", ids[1], "the index says of a frame what is not so"),
    }
    assert contents(repository, snapshot.id) == {"f": data[:4000], "g": other}
    assert repository.fsck().clean


def test_a_difference_to_what_is_as_deep_is_reported(repository: Repository) -> None:
    """Depths that fall from a chunk to its bases are what keeps out circles."""
    whole = noise(4096)
    middle, top = (bytes([whole[0] ^ change]) + whole[1:] for change in (1, 2))
    with repository.session() as session:
        put_against(session, middle, whole, put(session, whole))
        put_against(session, top, middle, chunk_id(middle), depth=0)  # a lie: it is 1
        save(repository, {"f": top}, branch="main", session=session)
    assert {finding.id for finding in repository.fsck().damage} == {chunk_id(top)}


def test_a_row_that_leads_into_no_pack_is_found(repository: Repository) -> None:
    """No pack that there is weighs less than its rows: only that row tells of it."""
    data = noise(4096)
    save(repository, {"f": data}, branch="main")
    stray = Place(4711, 64, 200, 4096, Codec.RAW, 0)
    repository.index.write(lambda update: update.put(CHUNKS, chunk_id(b"stray"), stray.encode()))
    assert {finding.id for finding in repository.fsck().damage} == {chunk_id(b"stray")}


def test_a_pack_that_is_gone_is_reported_and_forgotten(repository: Repository) -> None:
    files = {"f": noise(9000)}
    hurt = save(repository, files, branch="main")
    whole = save(repository, {"g": noise(9000)}, branch="other")
    frame_of(repository, hurt.root)[0].unlink()
    report = repository.fsck(repair=True)
    assert {finding.what for finding in report.damage} == {"pack", "frame"}
    assert all(whole.id not in finding.snapshots for finding in report.damage)
    save(repository, files, branch="again")
    assert {finding.id for finding in repository.fsck().damage} == {hurt.id}
    repository.remove(hurt.id)
    assert repository.fsck().clean


# --- names


def test_a_ref_that_leads_nowhere_is_mended(repository: Repository) -> None:
    first = save(repository, {"f": b"1"}, branch="main")
    second = save(repository, {"f": b"2"}, parents=[first.id], branch="main")
    repository.index.write(lambda update: update.delete(SNAPSHOTS, second.id))
    repository.index.write(lambda update: update.put(REFS, b"branch/bad", bytes(32)))
    assert {finding.what for finding in repository.fsck().damage} == {"ref", "index"}
    repository.fsck(repair=True)
    assert repository.refs.branches() == {"main": second.id}
    assert repository.fsck().clean


@pytest.mark.parametrize("how", ["damaged", "short", "gone"])
def test_a_lost_journal_is_written_anew(repository: Repository, how: str) -> None:
    expected = busy_repository(repository)
    before = names(repository)
    journal = repository.directory.journal
    if how == "damaged":
        damage(journal, 200)
    elif how == "short":
        journal.write_bytes(journal.read_bytes()[:100])
    else:
        journal.unlink()
    assert {finding.what for finding in repository.fsck().damage} == {"journal"}
    repository.fsck(repair=True)
    assert repository.fsck().clean
    assert names(repository) == before
    save(repository, {"more": noise(100)}, branch="more")
    assert {one: contents(repository, one) for one in expected} == expected
    rebuilt = lose_index(repository)
    with rebuilt:
        rebuilt.fsck(repair=True)
        assert names(rebuilt)[3][1:] == before[3]  # type: ignore[index]


# --- the index from the packs


def test_packs_and_journal_rebuild_the_index(repository: Repository) -> None:
    expected = busy_repository(repository)
    before = names(repository)
    with lose_index(repository) as rebuilt:
        assert [finding.what for finding in rebuilt.fsck().damage] == ["index"]
        report = rebuilt.fsck(repair=True)
        assert [finding.what for finding in report.damage] == ["index"]
        assert rebuilt.fsck().clean
        assert names(rebuilt) == before
        assert {one: contents(rebuilt, one) for one in expected} == expected
        assert rebuilt.resolve("main~1") == rebuilt.resolve("v1")
        rebuilt.gc()
        assert {one: contents(rebuilt, one) for one in expected} == expected
        save(rebuilt, {"more": noise(3000)}, branch="more")
        assert rebuilt.fsck().clean


def spoil(data: Path, how: str) -> None:
    """Damage LMDB's file: where it opens, some of it cannot be read."""
    size = data.stat().st_size
    if how == "rubbish":
        data.write_bytes(noise(20_000))
    elif how == "cut short":
        os.truncate(data, 3 * 4096 + 100)
    else:
        with data.open("r+b") as file:
            pages = file.read()
            for at in range(8192, size, 4096):
                if b"branch/" in pages[at : at + 4096]:
                    file.seek(at)
                    file.write(bytes(4096))


@pytest.mark.parametrize("how", ["rubbish", "cut short", "pages of zeros"])
def test_an_index_that_cannot_be_read_is_set_aside(repository: Repository, how: str) -> None:
    """One that was cut short used to end the process: the kernel maps it, and there is nothing to look at."""
    expected = busy_repository(repository)
    before = names(repository)
    path = repository.path
    repository.close()
    spoil(path / "index" / "data.mdb", how)
    with pytest.raises((StorageError, CorruptError)) as caught, Repository.open(path) as damaged:
        damaged.refs.branches()
    assert "fsck --repair" in (caught.value.hint or "")
    with Repository.open(path, damaged=True) as rebuilt:
        rebuilt.fsck(repair=True)
        assert {one: contents(rebuilt, one) for one in expected} == expected
        assert names(rebuilt) == before
        assert rebuilt.fsck().clean
    assert any(child.name.startswith("index.damaged") for child in path.iterdir())


def test_an_object_that_can_still_be_read_out_of_a_damaged_frame_is_stored_anew(repository: Repository) -> None:
    """The frame's header fails its checksum, the bytes are those that the id stands for."""
    files = {"a": noise(5000), "b": noise(5000)}
    kept = save(repository, files, branch="main")
    path, offset = frame_of(repository, kept.root)
    checksum = offset + HEADER.size - 12 - 32 - 4
    damage(path, checksum)
    assert not repository.fsck().clean
    repository.fsck(repair=True)
    assert frame_of(repository, kept.root) != (path, offset)
    assert repository.fsck().clean
    assert contents(repository, kept.id) == files


def test_of_indexes_that_were_set_aside_the_last_one_stays(repository: Repository) -> None:
    path = repository.path
    repository.close()
    seen: list[str] = []
    for _ in range(3):
        spoil(path / "index" / "data.mdb", "rubbish")
        with Repository.open(path, damaged=True) as rebuilt:
            rebuilt.fsck(repair=True)
        seen += [aside.name for aside in path.glob("index.damaged-*")]
    assert len(set(seen)) == len(seen) == 3, "each time one, and another"


def test_the_header_of_a_pack_is_written_anew_where_it_is_damaged_and_not_where_it_is_of_a_later_version(
    repository: Repository,
) -> None:
    save(repository, {"a": noise(5000)}, branch="main")
    (pack, *_) = pack_paths(repository)
    head = pack.read_bytes()[:PACK_HEADER_SIZE]
    kind = int.from_bytes(head[12:16], "little")
    assert not mend_pack_header(pack, kind, repository.directory.id)
    damage(pack, 20)
    assert mend_pack_header(pack, kind, repository.directory.id)
    later = bytearray(pack.read_bytes()[:PACK_HEADER_SIZE])
    later[8:12] = (2).to_bytes(4, "little")
    later[-4:] = zlib.crc32(later[:-4]).to_bytes(4, "little")
    with pack.open("r+b") as file:
        file.write(later)
    assert not mend_pack_header(pack, kind, repository.directory.id)
    assert pack.read_bytes()[:PACK_HEADER_SIZE] == later


def test_an_index_is_not_set_aside_beside_a_running_save(repository: Repository) -> None:
    """The save would go on to write into the old one."""
    busy_repository(repository)
    path = repository.path
    held = LockFile.create(repository.directory.sessions)
    repository.close()
    spoil(path / "index" / "data.mdb", "rubbish")
    with pytest.raises(LockedError):
        Repository.open(path, damaged=True)
    held.close()
    with Repository.open(path, damaged=True) as rebuilt:
        rebuilt.fsck(repair=True)
        assert rebuilt.fsck().clean


def test_a_torn_last_line_of_the_journal_was_never_acknowledged(repository: Repository) -> None:
    expected = busy_repository(repository)
    before = names(repository)
    with repository.directory.journal.open("ab") as journal:
        journal.write(noise(100))
    with lose_index(repository) as rebuilt:
        rebuilt.fsck(repair=True)
        assert rebuilt.fsck().clean
        assert names(rebuilt) == before
        assert {one: contents(rebuilt, one) for one in expected} == expected


def test_a_commit_that_failed_does_not_come_back_with_a_rebuild(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = busy_repository(repository)
    before = names(repository)

    def refuse(step: disk.Step) -> None:
        if step.op == "commit":
            raise OSError(28, "No space left on device")

    with repository.session() as session:
        ident = put(session, noise(3000))
        monkeypatch.setattr(disk, "observer", refuse)
        with pytest.raises(StorageError):
            session.commit_snapshot(ident, branch="never")
        monkeypatch.setattr(disk, "observer", None)
    with lose_index(repository) as rebuilt:
        rebuilt.fsck(repair=True)
        assert names(rebuilt) == before
        assert {one: contents(rebuilt, one) for one in expected} == expected
        assert rebuilt.fsck().clean


def test_without_index_and_journal_every_snapshot_is_found_again(repository: Repository) -> None:
    expected = busy_repository(repository)
    repository.directory.journal.unlink()
    with lose_index(repository) as rebuilt:
        rebuilt.fsck(repair=True)
        assert {one: contents(rebuilt, one) for one in expected} == expected
        assert all(name.startswith("recovered-") for name in rebuilt.refs.branches())
        assert rebuilt.fsck().clean
        rebuilt.gc()
        assert {one: contents(rebuilt, one) for one in expected} == expected


def test_a_rebuild_beside_a_running_save_is_refused(repository: Repository) -> None:
    save(repository, {"f": b"1"}, branch="main")
    path = repository.path
    session = repository.session()
    from ijfs_engine.storage.index import META

    repository.index.write(lambda update: update.clear(META))
    with Repository.open(path, damaged=True) as damaged, pytest.raises(LockedError):
        damaged.fsck(repair=True)
    session.abort()


def test_a_rebuild_drops_what_was_stored_against_something_lost(repository: Repository) -> None:
    """A difference in one pack, its base in another that is gone: a later save must not take it for stored."""
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    save(repository, {"base": base}, branch="main")
    with repository.session() as session:
        put_against(session, near, base, chunk_id(base))
        save(repository, {"near": near}, branch="near", session=session)
    frame_of(repository, chunk_id(base))[0].unlink()
    with lose_index(repository) as rebuilt:
        rebuilt.fsck(repair=True)
        snapshot = save(rebuilt, {"near": near}, branch="new")
        assert contents(rebuilt, snapshot.id) == {"near": near}


def test_a_lost_pack_of_what_can_be_missed_is_no_damage_to_either_check(repository: Repository) -> None:
    """An index put back from before a gc names such packs, too."""
    snapshot = save(repository, {"a": noise(9000)}, branch="main")
    before = pack_paths(repository)
    repository.put_working_set(snapshot.id, b"order" * 40)
    (sidecars,) = set(pack_paths(repository)) - set(before)
    sidecars.unlink()
    assert repository.fsck().clean
    assert repository.fsck(data=False).clean


@pytest.mark.parametrize("name", ["ffffffff.pack", "7ffffffe.pack", "40000000.pack"])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_pack_under_a_number_that_none_can_have_is_named_and_put_back(
    repository: Repository, name: str, moved: bool, lost: bool
) -> None:
    first = save(repository, {"f": noise(9000)}, branch="main")
    second = save(repository, {"f": noise(5000)}, branch="main", parents=[first.id])
    before = {one.id: contents(repository, one.id) for one in (first, second)}
    path, _ = frame_of(repository, first.id)
    shutil.copyfile(path, path.with_name(name))
    if moved:
        path.unlink()
    with lose_index(repository) if lost else nullcontext(repository) as opened:
        assert name in [one.where for one in opened.fsck().damage] or lost
        done = opened.fsck(repair=True)
        assert name in [one.where for one in done.damage]
        assert f"called {name} {path.name if moved else name + '.aside'}" in done.repaired[0]
        assert opened.fsck().clean
        assert {ident: contents(opened, ident) for ident in before} == before
        save(opened, {"f": noise(100)}, branch="main", parents=[second.id])
        assert opened.fsck().clean


def test_a_misnamed_pack_without_a_header_gets_a_number_of_its_own(repository: Repository) -> None:
    first = save(repository, {"f": noise(9000)}, branch="main")
    before = contents(repository, first.id)
    path, _ = frame_of(repository, first.id)
    damage(path, 8)
    path.rename(path.with_name("ffffffff.pack"))
    with lose_index(repository) as opened:
        opened.fsck(repair=True)
        assert opened.fsck().clean
        assert contents(opened, first.id) == before
