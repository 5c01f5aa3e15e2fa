"""An index that is older than the journal, or damaged: it is noticed, led on or built anew, and the journal not cut."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import lmdb
import pytest
from fuzz_seeds import contents_of, names_of
from storekit import contents, damage, frame_of, pack_paths, put_against, save

from ijfs_engine import CorruptError, IjfsError, NoRepositoryError, Repository
from ijfs_engine.format.frames import HEADER_SIZE, chunk_id
from ijfs_engine.format.place import Place
from ijfs_engine.maintenance.index_check import check_index
from ijfs_engine.maintenance.pack_check import NO_SUCH_PACK
from ijfs_engine.storage.elsewhere import FAR
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    META,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    REFS,
    REMOVED,
    SNAPSHOTS,
    TABLES,
    U64,
    Index,
    Update,
)
from ijfs_engine.storage.index_file import doubt, newest_meta
from ijfs_engine.storage.index_pages import Pages, look_over, read_head

RNG = random.Random(17)
PAGE = 4096


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


def pages_of(data: Path) -> tuple[int, Pages]:
    fd = os.open(data, os.O_RDONLY)
    meta = newest_meta(read_head(fd))
    assert meta is not None
    return fd, Pages(fd, meta)


# --- older than the journal


def grown(repository: Repository, changes: int) -> list[bytes]:
    """Snapshots in a line on a branch, each of some new bytes."""
    line: list[bytes] = []
    for number in range(changes):
        made = save(repository, {f"f{number}": noise(9000)}, parents=line[-1:], branch="main", message=str(number))
        line.append(made.id)
    return line


@pytest.mark.parametrize("lacking", [1, 3])
def test_yesterdays_index_is_led_on_to_what_the_journal_has(repository: Repository, lacking: int) -> None:
    path = repository.path
    grown(repository, 2)
    shutil.copy(path / "index" / "data.mdb", path / "yesterday")
    line = grown(repository, lacking)
    repository.refs.set_tag("v1", line[-1])
    before, expected = names_of(repository), contents_of(repository, [ident.hex() for ident in line])
    log = repository.refs.log()
    repository.close()
    shutil.copy(path / "yesterday", path / "index" / "data.mdb")
    with Repository.open(path) as opened:
        assert names_of(opened) == before
        assert [one[2:] for one in opened.refs.log()] == [one[2:] for one in log]
        assert opened.fsck().clean
        save(opened, {"more": noise(100)}, parents=line[-1:], branch="main")
        opened.gc()
        assert contents_of(opened, [ident.hex() for ident in line]) == expected
        assert opened.fsck().clean


def test_an_index_from_before_a_gc_is_built_anew(repository: Repository) -> None:
    """The packs that it knows are gone: it cannot be led on, and gc may not remove those that it does not know."""
    path = repository.path
    kept = save(repository, {"kept": noise(20_000)}, branch="main")
    save(repository, {"gone": noise(200_000)}, branch="gone")
    shutil.copy(path / "index" / "data.mdb", path / "yesterday")
    repository.refs.delete_branch("gone")
    repository.gc()
    before, expected = names_of(repository), contents(repository, kept.id)
    repository.close()
    shutil.copy(path / "yesterday", path / "index" / "data.mdb")
    with pytest.raises(CorruptError, match="older than the journal"):
        Repository.open(path)
    with Repository.open(path, damaged=True) as opened:
        with pytest.raises(CorruptError):
            opened.gc()
        assert "index" in {one.what for one in opened.fsck(repair=True).damage}
        assert opened.fsck().clean
        assert names_of(opened) == before
        assert contents(opened, kept.id) == expected


def test_a_journal_is_never_cut_where_it_knows_more(repository: Repository) -> None:
    """Its way on is damaged, so the index cannot be led on: nobody writes until fsck has seen to it."""
    path = repository.path
    grown(repository, 2)
    shutil.copy(path / "index" / "data.mdb", path / "yesterday")
    end = (path / "journal").stat().st_size
    line = grown(repository, 2)
    expected = contents(repository, line[-1])
    repository.close()
    shutil.copy(path / "yesterday", path / "index" / "data.mdb")
    damage(path / "journal", end + HEADER_SIZE + 3)
    size = (path / "journal").stat().st_size
    with pytest.raises(CorruptError, match="older than the journal"):
        Repository.open(path)
    assert (path / "journal").stat().st_size == size
    with Repository.open(path, damaged=True) as opened:
        opened.fsck(repair=True)
        assert contents(opened, opened.resolve("main")) == expected
        assert {one.id for one in opened.snapshots()} >= set(line)
        assert opened.fsck().clean


def test_what_the_index_lists_is_not_among_the_removed_ones(repository: Repository) -> None:
    """The journal's line that listed it again is damaged, and so is the index, elsewhere: both are made anew."""
    first = save(repository, {"a": noise(9000)}, message="first")
    second = save(repository, {"b": noise(9000)}, parents=[first.id], branch="main")
    repository.remove(first.id)
    end = (repository.path / "journal").stat().st_size
    repository.refs.set_tag("v1", second.id)

    def list_again(update: Update) -> None:
        update.put(SNAPSHOTS, first.id, U64.pack(first.created_ns))
        update.delete(REMOVED, first.id)
        update.put(CHUNKS, bytes(32), b"no row")

    repository.index.write(list_again)
    damage(repository.path / "journal", end + HEADER_SIZE + 3)
    repository.fsck(repair=True)
    assert first.id in {one.id for one in repository.snapshots()}
    assert repository.parents(second.id) == [first.id]
    with repository.index.read() as view:
        assert view.get(REMOVED, first.id) is None
    assert repository.fsck().clean


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_a_transaction_number_is_noticed(repository: Repository, bit: int) -> None:
    path = repository.path
    grown(repository, 3)
    before = names_of(repository)
    repository.close()
    data = bytearray((path / "index" / "data.mdb").read_bytes())
    for meta in (0, PAGE):
        changed = bytearray(data)
        changed[meta + 144] ^= 1 << bit
        (path / "index" / "data.mdb").write_bytes(changed)
        with pytest.raises(CorruptError, match="is damaged: "):
            Repository.open(path)
        with Repository.open(path, damaged=True) as opened:
            opened.fsck(repair=True)
            assert names_of(opened) == before
            assert opened.fsck().clean


def test_who_has_the_repository_open_goes_on_with_the_new_index(repository: Repository) -> None:
    """Another process repairs: a keeper's next save must not go into the index that was set aside."""
    (first,) = grown(repository, 1)
    repository.index.write(lambda update: update.put(CHUNKS, bytes(32), b"no row"))
    mend = "import sys; from ijfs_engine import Repository as R; R.open(sys.argv[1], damaged=True).fsck(repair=True)"
    subprocess.run([sys.executable, "-c", mend, str(repository.path)], check=True, timeout=60)
    second = save(repository, {"g": noise(5000)}, parents=[first], branch="main")
    with Repository.open(repository.path) as another:
        assert another.resolve("main") == second.id
        assert another.fsck().clean
    assert len(list(repository.path.glob("index.damaged-*"))) == 1


# --- damaged in itself


def test_own_code_reads_pages_as_lmdb_does(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = {rng.randbytes(rng.randrange(1, 400)): rng.randbytes(rng.choice((0, 10, 3000, 9000))) for _ in range(700)}
    with closing(lmdb.open(str(tmp_path / "index"), map_size=64 << 20, max_dbs=3)) as env:
        table = env.open_db(b"table")
        for lot in range(4):
            with env.begin(write=True, db=table) as txn:
                for key in list(rows)[lot::4]:
                    txn.put(key, rows[key])
        for key in rng.sample(sorted(rows), 200):
            with env.begin(write=True, db=table) as txn:
                txn.delete(key)
            del rows[key]
    fd, pages = pages_of(tmp_path / "index" / "data.mdb")
    tables = pages.tables()
    assert {row.key: row.value for row in pages.rows(tables[b"table"], "table")} == rows
    pages.check_free()
    assert pages.faults == []
    os.close(fd)


def test_every_page_is_in_use_or_free(repository: Repository) -> None:
    """The lists are read as LMDB means them: nothing is left over, whatever was done."""
    for number in range(12):
        grown(repository, 3)
        repository.refs.set_tag(f"t{number}", repository.resolve("main"))
        if number % 4 == 3:
            repository.gc()
    assert check_index(repository.index) == []
    with repository.index.pages() as pages:
        for name, tree in pages.tables().items():
            pages.read_through(tree, name.decode())
        pages.check_free()
        assert sum(pages._used) == len(pages._used) - 2


def test_a_page_that_is_free_and_in_use_is_found(repository: Repository) -> None:
    """The next save would write over it."""
    grown(repository, 5)
    path = repository.path / "index" / "data.mdb"
    repository.close()
    fd, pages = pages_of(path)
    free = next(pages.rows(pages.meta.free, "free", numbers=True))
    used = pages.tables()[CHUNKS].root
    os.close(fd)
    assert used is not None
    data = bytearray(path.read_bytes())
    taken = (1).to_bytes(8, "little") + used.to_bytes(8, "little") + free.value[16:]
    path.write_bytes(data.replace(free.value, taken))
    with pytest.raises(CorruptError, match="as free that cannot be"):
        Repository.open(repository.path)
    with Repository.open(repository.path, damaged=True) as opened:
        opened.fsck(repair=True)
        assert opened.fsck().clean


def changed_rows(repository: Repository) -> dict[str, Callable[[], object]]:
    """Ways to make the index say what is not so, with every page sound."""
    index = repository.index
    with index.read() as view:
        ident, row = next(iter(view.items(CHUNKS)))
        pack, size = next(iter(view.items(PACKS)))
    place = Place.decode(row)

    def put_row(table: bytes, key: bytes, value: bytes) -> Callable[[], object]:
        return lambda: index.write(lambda update: update.put(table, key, value))

    return {
        "shape": put_row(CHUNKS, ident, row[:-1]),
        "codec": put_row(CHUNKS, ident, place._replace(tag=(place.tag + 1) % 5).encode()),
        "depth": put_row(CHUNKS, ident, place._replace(depth=3).encode()),
        "plain": put_row(CHUNKS, ident, place._replace(plain=place.plain - 1).encode()),
        "bases": put_row(BASES, ident, bytes(32)),
        "pack kind": put_row(PACKS, pack, PACK_ROW.pack(2, PACK_ROW.unpack(size)[1])),
        "pack size": put_row(PACKS, pack, PACK_ROW.pack(1, 100)),
        "longer pack": put_row(PACKS, pack, PACK_ROW.pack(1, PACK_ROW.unpack(size)[1] | 1 << 61)),
        "far pack": put_row(PACKS, PACK_KEY.pack(FAR), PACK_ROW.pack(1, 100)),
        "next pack": put_row(META, b"next_pack", U64.pack(FAR - 1)),
        "no pack": put_row(PACKS, PACK_KEY.pack(77), PACK_ROW.pack(1, 100)),
        "name": put_row(REFS, b"branch/\xff", bytes(32)),
        "journal": put_row(META, b"journal", bytes(15)),
    }


@pytest.mark.parametrize(
    "what",
    [
        "shape", "codec", "depth", "plain", "bases", "pack kind", "pack size", "longer pack", "far pack", "next pack",
        "no pack", "name", "journal",
    ],
)  # fmt: skip
def test_rows_that_are_not_so_are_found_and_the_index_is_built_anew(repository: Repository, what: str) -> None:
    grown(repository, 3)
    before = names_of(repository)
    expected = contents_of(repository, [one.id.hex() for one in repository.snapshots()])
    changed_rows(repository)[what]()
    assert not repository.fsck().clean
    assert repository.fsck(repair=True).repaired
    assert repository.fsck().clean
    assert repository.fsck(data=False).clean
    assert names_of(repository) == before
    assert contents_of(repository, sorted(expected)) == expected


def test_nothing_is_stored_under_a_number_that_no_pack_may_have(repository: Repository) -> None:
    """Packs from 2^31 on are looked for at remotes: a save would end well, and its snapshot could not be read."""
    (first,) = grown(repository, 1)
    changed_rows(repository)["next pack"]()
    before = pack_paths(repository)
    with pytest.raises(CorruptError, match="next pack") as refused:
        save(repository, {"f": noise(100)}, branch="main")
    assert "`ijfs fsck --repair`" in str(refused.value.hint)
    assert pack_paths(repository) == before
    repository.fsck(repair=True)
    second = save(repository, {"f": b"more"}, branch="main")
    assert contents(repository, second.id) == {"f": b"more"}
    assert contents(repository, first)


def test_a_count_of_packs_that_went_back_is_led_on(repository: Repository) -> None:
    """Also in gc, which writes what is left of a pack into a new one."""
    keep, gone = {"keep": noise(9000)}, {"gone": noise(9000)}
    kept = save(repository, keep, branch="keep")
    both = save(repository, {**keep, **gone, "more": noise(200_000)}, branch="both")
    left = save(repository, {"more": noise(200_000), **gone}, branch="left")
    for number in range(20):
        save(repository, {"f": noise(50)}, branch=f"b{number}")
    repository.index.write(lambda update: update.set_number(b"next_pack", 0))
    repository.refs.delete_branch("both")
    assert repository.gc().packs_rewritten
    repository.index.write(lambda update: update.set_number(b"next_pack", 0))
    last = save(repository, {"last": noise(100)}, branch="last")
    assert both.id not in {one.id for one in repository.snapshots()}
    assert contents(repository, kept.id) == keep
    assert contents(repository, left.id).keys() == {"more", "gone"}
    assert contents(repository, last.id).keys() == {"last"}
    assert repository.fsck().clean


def test_an_unknown_table_is_a_damaged_name(repository: Repository) -> None:
    grown(repository, 1)
    path = repository.path
    repository.close()
    data = (path / "index" / "data.mdb").read_bytes()
    (path / "index" / "data.mdb").write_bytes(data.replace(b"snapshots", b"snapshott"))
    with pytest.raises(CorruptError), Repository.open(path) as opened:
        opened.snapshots()
    with Repository.open(path, damaged=True) as opened:
        assert "index" in {one.what for one in opened.fsck(repair=True).damage}
        assert opened.fsck().clean
        assert len(opened.snapshots()) == 1


# --- what a reader still gets is kept


@pytest.mark.parametrize("field", [16, 52], ids=["crc", "sum"])
def test_bytes_that_can_be_read_are_stored_anew(repository: Repository, field: int) -> None:
    """A bit of a checksum is turned: the bytes are right, and a repair must not let go of them."""
    files = {"f": noise(9000), "g": noise(3000)}
    snapshot = save(repository, files, branch="main")
    for ident in (chunk_id(files["g"]), snapshot.root, snapshot.id):
        path, offset = frame_of(repository, ident)
        damage(path, offset + field)
    report = repository.fsck(repair=True)
    assert {one.id for one in report.damage} >= {chunk_id(files["g"])}
    assert contents(repository, snapshot.id)["g"] == files["g"]
    if field == 16:
        return  # a record is read by its checksums alone
    assert contents(repository, snapshot.id) == files


def test_a_damaged_header_of_a_pack_is_written_anew(repository: Repository) -> None:
    snapshot = save(repository, {"f": noise(9000)}, branch="main")
    (path,) = pack_paths(repository)
    whole = path.read_bytes()
    damage(path, 20)
    assert [one.what for one in repository.fsck(repair=True).damage] == ["pack"]
    assert repository.fsck().clean
    assert path.read_bytes()[64:] == whole[64:]
    assert contents(repository, snapshot.id)


@pytest.mark.parametrize("text", [None, b"", b"ijfs repository\nversion: 1\nid: 00", b"\0" * 40])
def test_a_lost_format_file_is_made_from_the_packs(repository: Repository, text: bytes | None) -> None:
    grown(repository, 1)
    path = repository.path
    whole = (path / "format").read_bytes()
    repository.close()
    (path / "format").unlink()
    if text is not None:
        (path / "format").write_bytes(text)
    with pytest.raises(Exception, match=r"repository|damaged") as caught:
        Repository.open(path)
    assert "`ijfs fsck --repair`" in str(getattr(caught.value, "hint", None))
    with Repository.open(path, damaged=True) as opened:
        assert [one.what for one in opened.fsck(repair=True).damage] == ["format"]
        assert opened.fsck().clean
    assert (path / "format").read_bytes() == whole


def test_where_no_pack_is_a_new_repository_is_advised(tmp_path: Path) -> None:
    with pytest.raises(NoRepositoryError) as caught:
        Repository.open(tmp_path)
    assert "`ijfs init`" in str(caught.value.hint)


def test_a_missing_journal_is_said_with_its_repair(repository: Repository) -> None:
    grown(repository, 1)
    repository.directory.journal.unlink()
    for use in (repository.stats, repository.gc, lambda: save(repository, {"a": b"x"}, branch="other")):
        with pytest.raises(CorruptError, match=r"journal .* is missing") as caught:
            use()
        assert "`ijfs fsck --repair`" in str(caught.value.hint)
    assert [one.what for one in repository.fsck(repair=True).damage] == ["journal"]
    assert save(repository, {"a": b"x"}, branch="other").id


@pytest.mark.parametrize("make", [Repository.init, Repository.open])
def test_a_path_that_is_no_utf_8_is_refused_before_anything_is_made(
    tmp_path: Path, make: Callable[[Path], Repository]
) -> None:
    path = tmp_path / os.fsdecode(b"q\xff")
    with pytest.raises(IjfsError, match="its path is not UTF-8"):
        make(path)
    assert not path.exists()


def test_a_digit_of_the_repositorys_id_is_mended(repository: Repository) -> None:
    grown(repository, 1)
    path = repository.path
    repository.close()
    whole = (path / "format").read_bytes()
    (path / "format").write_bytes(whole[:-2] + (b"0" if whole[-2:-1] != b"0" else b"1") + b"\n")
    with Repository.open(path, damaged=True) as opened:
        assert [one.what for one in opened.fsck(repair=True).damage] == ["format"]
    assert (path / "format").read_bytes() == whole


def test_a_meta_page_as_lmdb_writes_it_raises_no_doubt(tmp_path: Path) -> None:
    """Through many commits, also those that LMDB does in a reopened file."""
    (tmp_path / "index").mkdir()
    for _ in range(4):
        with closing(Index.open(tmp_path / "index")) as index:
            for number in range(5):
                index.write(lambda update, number=number: update.put(REFS, b"%d" % number, bytes(32)))  # type: ignore[misc]
                assert doubt((tmp_path / "index" / "data.mdb").read_bytes()[: 2 * PAGE]) is None
                assert look_over(tmp_path / "index" / "data.mdb", TABLES) is None


@pytest.mark.parametrize("field", Place._fields)
@pytest.mark.parametrize("value", [0, 63, 64, 1 << 20, (1 << 32) - 8])
def test_whatever_a_row_says_of_a_frame_a_read_ends_with_the_bytes_or_a_sentence(
    repository: Repository, field: str, value: int
) -> None:
    data = noise(5000)
    made = save(repository, {"f": data}, branch="main")
    for table, ident in ((OBJECTS, made.root), (CHUNKS, chunk_id(data[:4096]))):
        with repository.index.read() as view:
            row = view.get(table, ident)
        assert row is not None
        changed = Place.decode(row)._replace(**{field: value & 0xFF if field in ("tag", "depth") else value}).encode()
        repository.index.write(lambda update, to=(table, ident, changed): update.put(*to))  # type: ignore[misc]
        with suppress(CorruptError):
            assert contents(repository, made.id) == {"f": data}
        with suppress(CorruptError), closing(repository.reader()) as reader:
            assert reader.open(reader.lookup(made.root, "f")).read(0, 5000) == data
        assert Place.decode(changed) == Place.decode(row) or not repository.fsck().clean
        repository.index.write(lambda update, to=(table, ident, row): update.put(*to))  # type: ignore[misc]
    assert repository.fsck().clean


def test_a_row_that_names_a_pack_which_never_was_costs_nothing_not_even_a_difference(repository: Repository) -> None:
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    save(repository, {"base": base}, branch="base")
    with repository.session() as session:
        put_against(session, near, base, chunk_id(base))
        made = save(repository, {"near": near}, branch="near", session=session)
    with repository.index.read() as view:
        row = view.get(CHUNKS, chunk_id(near))
    assert row is not None
    stray = Place.decode(row)._replace(pack=77).encode()
    repository.index.write(lambda update: update.put(CHUNKS, chunk_id(near), stray))
    assert {one.message for one in repository.fsck().damage} == {NO_SUCH_PACK}
    repository.fsck(repair=True)
    assert repository.fsck().clean
    assert contents(repository, made.id) == {"near": near}
