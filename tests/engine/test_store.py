"""Packs, index and sessions: what is put comes back, from any process, and nothing shows before its commit."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from storekit import chunks, contents, damage, frame_of, pack_paths, put, put_against, read, save
from waiting import eventually

from ijfs_engine import CorruptError, IjfsError, NoRepositoryError, Repository, StorageError, UnknownFormatError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import (
    HEADER_SIZE,
    Codec,
    EncodedChunk,
    FrameKind,
    chunk_id,
    decode_frame,
    encode_header,
    object_id,
)
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import Entry, Tree, decode_leaf, decode_tree, encode_tree
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import CHUNKS, Index
from ijfs_engine.storage.pack import PackReader, pack_path
from ijfs_engine.storage.session import Session

RNG = random.Random(20261121)


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


def test_what_was_saved_is_read_back_after_reopening(repository: Repository) -> None:
    files = {"empty": b"", "small": b"x", "chunk": noise(4096), "leaf": noise(9000), "large": noise(50_000)}
    files["zeros"] = bytes(20_000)
    snapshot = save(repository, files, message="first", branch="main")
    path = repository.path
    repository.close()
    with Repository.open(path) as again:
        assert again.snapshots() == [snapshot]
        assert contents(again, snapshot.id) == files


def test_equal_bytes_are_stored_once(repository: Repository) -> None:
    files = {"a": noise(40_000)}
    save(repository, files, branch="main")
    before = repository.stats()
    save(repository, {**files, "b": files["a"]}, branch="main")
    assert repository.stats().chunks == before.chunks


def test_metadata_stays_under_one_percent_of_incompressible_chunks(repository: Repository) -> None:
    session = repository.session()
    ids = [put(session, noise(64 << 10)) for _ in range(640)]
    from array import array

    from ijfs_engine.format.records import FileContent, Leaf, encode_file, encode_leaf

    leaves = []
    for at in range(0, len(ids), 64):
        part = ids[at : at + 64]
        leaf = Leaf(b"".join(part), array("I", range(64)), array("I", [0] * 64), array("I", [64 << 10] * 64))
        leaves.append((session.put_object(FrameKind.LEAF, encode_leaf(leaf)), leaf.size))
    file = session.put_object(FrameKind.FILE, encode_file(FileContent.of(leaves)))
    entry = Entry(b"a", "f", 0o644, 0, 0, 0, size=640 << 16, content=file)
    session.commit_snapshot(session.put_object(FrameKind.TREE, encode_tree(Tree((entry,)))), branch="main")
    plain = 640 << 16
    assert repository.du().total.stored - plain < 0.0025 * plain


def test_nothing_of_a_session_without_commit_is_visible(repository: Repository) -> None:
    with repository.session() as session:
        ident = put(session, noise(5000))
        assert session.lookup_many([ident]) == [True]
        with repository.session() as other:
            assert other.lookup_many([ident]) == [False]
    assert repository.snapshots() == []
    assert pack_paths(repository) == []
    assert list(repository.directory.sessions.iterdir()) == []


def test_a_session_that_has_ended_takes_nothing_more(repository: Repository) -> None:
    """A thread that is late would begin a pack that nobody closes."""
    session = repository.session()
    session.abort()
    data = noise(5000)
    for late in (
        lambda: session.put_chunks([chunk_codec.encode(memoryview(data), chunk_id(data))]),
        lambda: session.put_object(FrameKind.TREE, encode_tree(Tree(()))),
        lambda: session.put_sidecar(bytes(32), b"late"),
        lambda: session.commit_snapshot(bytes(32)),
    ):
        with pytest.raises(IjfsError, match="ended"):
            late()
    assert pack_paths(repository) == []


def test_a_full_pack_is_published_and_the_next_begun(repository: Repository) -> None:
    session = Session(repository.directory, repository.index, repository.journal, pack_target=100_000)
    files = {"a": noise(500_000)}
    snapshot = save(repository, files, session=session, branch="main")
    assert len(pack_paths(repository)) >= 5
    assert contents(repository, snapshot.id) == files


def test_a_chunk_against_a_base_comes_back(repository: Repository) -> None:
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    with repository.session() as session:
        first = put(session, base)
        second = put_against(session, near, base, first)
        session.publish()
    assert [bytes(plain) for plain in chunks(repository, [second, first])] == [near, base]
    assert [info.depth for info in repository.store.chunk_info([second]) if info] == [1]


def test_many_sessions_write_at_once(repository: Repository) -> None:
    shared = noise(30_000)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                files = {"shared": shared, "own": random.Random(number * 10 + turn).randbytes(20_000)}
                snapshot = save(repository, files, branch=f"b{number}")
                assert contents(repository, snapshot.id) == files
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(repository.snapshots()) == 18
    assert repository.fsck().clean


WRITER = """
import sys, random
sys.path.insert(0, sys.argv[1])
from storekit import save
from ijfs_engine import Repository
with Repository.open(sys.argv[2]) as repository:
    for turn in range(5):
        save(repository, {"f": random.Random(sys.argv[3] + str(turn)).randbytes(30_000)}, branch="b" + sys.argv[3])
"""


def test_processes_write_at_once_and_see_one_another(repository: Repository) -> None:
    here = str(Path(__file__).parent)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, here, str(repository.path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert set(repository.refs.branches()) == {"ba", "bb", "bc"}
    assert len(repository.snapshots()) == 15
    assert repository.fsck().clean


GROWER = """
import sys
from pathlib import Path
from ijfs_engine.storage.index import CHUNKS, Index
index = Index(Path(sys.argv[1]), map_size=256 << 10)
index.write(lambda update: update.put_many(CHUNKS, ((n.to_bytes(32, "big"), bytes(18)) for n in range(30_000))))
"""


def test_the_index_grows_here_and_by_other_processes(tmp_path: Path) -> None:
    tmp_path.joinpath("index").mkdir()
    index = Index(tmp_path / "index", map_size=256 << 10)
    rows = [(bytes([1]) + n.to_bytes(31, "big"), bytes(18)) for n in range(20_000)]
    index.write(lambda update: update.put_many(CHUNKS, rows))
    subprocess.run([sys.executable, "-c", GROWER, str(tmp_path / "index")], check=True, timeout=60)
    with index.read() as view:
        assert view.count(CHUNKS) == 50_000
    assert index.map_size > 4 << 20
    index.close()


def test_reads_go_on_while_the_map_grows(tmp_path: Path) -> None:
    tmp_path.joinpath("index").mkdir()
    index = Index(tmp_path / "index", map_size=256 << 10)
    index.write(lambda update: update.put(CHUNKS, bytes(32), b"row"))
    stop = threading.Event()
    wrong: list[object] = []

    def look() -> None:
        while not stop.is_set():
            with index.read() as view:
                if view.get(CHUNKS, bytes(32)) != b"row":
                    wrong.append(1)
            stop.wait(0.001)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(20):
        rows = [(bytes([turn + 1]) + n.to_bytes(31, "big"), bytes(18)) for n in range(2000)]
        index.write(lambda update, r=rows: update.put_many(CHUNKS, r))  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    index.close()
    assert wrong == []


def test_a_damaged_payload_is_an_error_and_its_neighbours_are_whole(repository: Repository) -> None:
    one, two = noise(4096), noise(4096)
    snapshot = save(repository, {"one": one, "two": two}, branch="main")
    path, offset = frame_of(repository, chunk_id(one))
    damage(path, offset + HEADER_SIZE + 100)
    tree = repository.store.tree(snapshot.root)
    by_name = {entry.name: entry.content for entry in tree.entries}
    assert read(repository, by_name[b"two"]) == two
    with pytest.raises(CorruptError, match=r"does not have the bytes|cannot be unpacked"):
        read(repository, by_name[b"one"])


@pytest.mark.parametrize("byte", range(HEADER_SIZE))
def test_a_damaged_header_never_gives_wrong_bytes_and_fsck_finds_it(repository: Repository, byte: int) -> None:
    data = noise(4096)
    save(repository, {"one": data}, branch="main")
    path, offset = frame_of(repository, chunk_id(data))
    damage(path, offset + byte)
    with contextlib.suppress(CorruptError):
        assert bytes(chunks(repository, [chunk_id(data)])[0]) == data
    assert [finding.id for finding in repository.fsck().damage] == [chunk_id(data)]


def test_a_pack_put_back_from_a_copy_is_read_by_who_had_the_damaged_one_open(
    repository: Repository, tmp_path: Path
) -> None:
    data = noise(4096)
    save(repository, {"f": data})
    path, offset = frame_of(repository, chunk_id(data))
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    damage(path, offset)
    with pytest.raises(CorruptError):
        chunks(repository, [chunk_id(data)])
    copy.rename(path)
    assert [bytes(plain) for plain in chunks(repository, [chunk_id(data)])] == [data]


@pytest.mark.parametrize(("moves", "found"), [(1, True), (2, True), (3, True), (9, False)])
def test_a_frame_that_moves_while_it_is_read_is_looked_for_again(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, moves: int, found: bool
) -> None:
    """gc may move a frame between the look into the index and the read, and again; not for ever."""
    data = noise(4096)
    save(repository, {"f": data})
    with repository.index.read() as view:
        row = view.get(CHUNKS, chunk_id(data))
    assert row is not None
    place = Place.decode(row)
    read = PackReader.read
    left = list(range(moves))

    def point_at(where: Place) -> None:
        repository.index.write(lambda update: update.put(CHUNKS, chunk_id(data), where.encode()))

    def read_too_late(self: PackReader, number: int, offset: int, length: int) -> bytes:
        if number == place.pack:
            return read(self, number, offset, length)
        left.pop()
        point_at(place._replace(pack=1000 + len(left)) if left else place)
        raise FileNotFoundError(number)

    point_at(place._replace(pack=1000 + moves))
    monkeypatch.setattr(PackReader, "read", read_too_late)
    if found:
        assert [bytes(plain) for plain in chunks(repository, [chunk_id(data)])] == [data]
    else:
        with pytest.raises(CorruptError, match="missing"):
            chunks(repository, [chunk_id(data)])


def test_a_reader_keeps_so_many_packs_open_and_no_more(tmp_path: Path) -> None:
    for number in range(1, 5):
        pack_path(tmp_path, number).write_bytes(b"pack %d" % number)
    before = len(os.listdir("/proc/self/fd"))
    reader = PackReader(tmp_path, max_open=3)
    assert [reader.read(number, 0, 9) for number in (1, 2, 3, 4, 1)] == [b"pack %d" % n for n in (1, 2, 3, 4, 1)]
    assert len(os.listdir("/proc/self/fd")) == before + 3
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pack_that_is_gone_is_an_error(repository: Repository) -> None:
    save(repository, {"one": noise(4096)}, branch="main")
    for path in pack_paths(repository):
        path.unlink()
    with pytest.raises(CorruptError, match="missing"):
        repository.store.snapshot(repository.resolve("main"))


def test_an_object_is_never_taken_for_another_kind(repository: Repository) -> None:
    snapshot = save(repository, {"one": noise(4096)}, branch="main")
    with pytest.raises(CorruptError):
        repository.store.file(snapshot.root)


def test_an_object_that_claims_a_hostile_size_is_refused() -> None:
    import zstandard

    from ijfs_engine.storage.object_store import expand

    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    with pytest.raises(CorruptError):
        expand(EncodedChunk(bytes(32), Codec.ZSTD, 10, bomb))


def test_a_frame_says_what_it_is() -> None:
    plain = noise(1000)
    chunk = chunk_codec.encode(memoryview(plain), chunk_id(plain))
    data = encode_header(FrameKind.CHUNK, chunk) + bytes(chunk.payload)
    header, back = decode_frame(data)
    assert (header.kind, back.id, bytes(back.payload)) == (FrameKind.CHUNK, chunk.id, bytes(chunk.payload))
    assert header.span == len(data)


def test_ids_of_kinds_never_meet() -> None:
    data = b"the same bytes"
    ids = {object_id(kind, data) for kind in FrameKind.NAMES if kind != FrameKind.CHUNK} | {chunk_id(data)}
    assert len(ids) == len(FrameKind.NAMES)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x91\x91", os.urandom(100), b"\x00" * 8 + b"x"])
def test_objects_that_cannot_be_parsed_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_tree(data)
    with pytest.raises(CorruptError):
        decode_leaf(data)


def test_a_tree_out_of_order_is_refused() -> None:
    entries = [Entry(name, "f", 0o644, 0, 0, 0) for name in (b"b", b"a")]
    with pytest.raises(ValueError, match="sorted"):
        encode_tree(Tree(tuple(entries)))
    good = encode_tree(Tree(tuple(sorted(entries, key=lambda entry: entry.name))))
    with pytest.raises(CorruptError):
        decode_tree(good.replace(b"a", b"c", 1))


# --- the directory


def test_init_leaves_what_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(IjfsError, match="not an empty directory"):
        Repository.init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_is_no_repository_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NoRepositoryError):
            Repository.open(path)


def test_an_unknown_version_is_refused(repository: Repository) -> None:
    file = repository.path / "format"
    file.write_text(file.read_text().replace("version: 1", "version: 3"))
    with pytest.raises(UnknownFormatError, match="format 3"):
        Repository.open(repository.path)


def test_an_unknown_pack_version_is_refused(repository: Repository) -> None:
    import struct
    import zlib

    save(repository, {"one": noise(100)}, branch="main")
    (path,) = pack_paths(repository)
    header = bytearray(path.read_bytes()[:64])
    struct.pack_into("<I", header, 8, 9)
    struct.pack_into("<I", header, 60, zlib.crc32(header[:60]))
    with path.open("r+b") as file:
        file.write(header)
    report = repository.fsck()
    assert [finding.what for finding in report.damage] == ["pack"]
    assert "pack format 9" in report.damage[0].message


def test_a_repository_is_its_owners_alone(repository: Repository) -> None:
    assert repository.path.stat().st_mode & 0o777 == 0o700
    for path in [*pack_paths(repository), repository.directory.journal, repository.path / "secret"]:
        assert path.stat().st_mode & 0o077 == 0


def test_the_secret_is_one_per_repository(repository: Repository, tmp_path: Path) -> None:
    with Repository.init(tmp_path / "other") as other:
        assert other.store.secret != repository.store.secret
    assert len(repository.store.secret) == 32


# --- when the system refuses


def test_a_full_disk_is_a_clear_error_and_changes_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a": noise(30_000)}
    before = save(repository, files, branch="main")

    def full(step: disk.Step) -> None:
        if step.op == "write" and step.path.endswith(".pack"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "observer", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        save(repository, {"a": noise(30_000)}, branch="main")
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint
    monkeypatch.setattr(disk, "observer", None)
    assert repository.resolve("main") == before.id
    assert contents(repository, before.id) == files
    assert len(pack_paths(repository)) == 1
    assert repository.fsck().clean


@pytest.mark.parametrize("where", ["journal", "index"])
def test_a_commit_that_fails_leaves_the_repository_as_it_was(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = save(repository, {"a": noise(3000)}, branch="main")

    def refuse(step: disk.Step) -> None:
        if (where, step.op) in (("journal", "fsync"), ("index", "commit")) and step.path.endswith(where):
            raise OSError(5, "Input/output error")

    with repository.session() as session:
        content = session.put_object(FrameKind.TREE, encode_tree(Tree(())))
        monkeypatch.setattr(disk, "observer", refuse)
        with pytest.raises(StorageError):
            session.commit_snapshot(content, branch="main")
        monkeypatch.setattr(disk, "observer", None)
    assert repository.resolve("main") == before.id
    assert repository.snapshots() == [before]
    assert repository.fsck().clean
    save(repository, {"b": noise(3000)}, branch="main")
    assert repository.fsck().clean


def test_large_reads_through_a_pack_have_the_kernel_read_ahead(tmp_path: Path) -> None:
    pack = pack_path(tmp_path, 1)
    pack.write_bytes(bytes(48 << 20))
    with pack.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if in_page_cache(file.fileno(), 4 << 20):
            pytest.skip("this file system keeps its files in memory")
        reader = PackReader(tmp_path)
        with reader.opened([[1, 40 << 20, (40 << 20) + 4096]]), reader.opened([[1, 0, 1 << 20]]):
            pass
        assert eventually(lambda: in_page_cache(file.fileno(), 8 << 20))
        assert not in_page_cache(file.fileno(), 40 << 20)
        reader.advise_reads([[1, 40 << 20, 41 << 20]])
        assert eventually(lambda: in_page_cache(file.fileno(), 40 << 20))
        reader.close()


def in_page_cache(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
