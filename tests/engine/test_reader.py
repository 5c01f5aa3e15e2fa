"""Reading any range from many threads, within a bounded cache, and never wrong bytes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import zstandard
from criu_images import image_set
from waiting import eventually

from ijfs_engine import CorruptError, IjfsError, Reader, Repository, Segments, StoredFile
from ijfs_engine.format.frames import BaseExtent, Codec, EncodedChunk, chunk_id, pack_bases
from ijfs_engine.read import bulk, chunk_reader
from ijfs_engine.util.byte_lru import ByteLru

MIB = 1 << 20
DATA = random.Random(1).randbytes(5 * MIB) + bytes(3 * MIB) + b"tail" * 1000


@pytest.fixture
def root(repository: Repository) -> bytes:
    with repository.begin() as writer:
        writer.add_file("large", DATA)
        writer.add_file("small", b"just these")
        writer.add_file("empty", b"")
        writer.add_file("sub/leaf", DATA[: 2 * MIB])
        return writer.commit().root


class CountingStore:
    """The real store, with a note of what was asked of it."""

    def __init__(self, repository: Repository) -> None:
        self._store = repository.store
        self.asked: list[bytes] = []
        self.delay = 0.0

    def get_chunks(self, ids: Sequence[bytes]) -> list[EncodedChunk]:
        self.asked += ids
        time.sleep(self.delay)
        return self._store.get_chunks(ids)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def test_any_range_is_read(repository: Repository, root: bytes) -> None:
    reader = repository.reader(cache_bytes=MIB)
    file = reader.open(reader.lookup(root, "large"))
    assert file.size == len(DATA)
    rng = random.Random(2)
    ranges = [(0, 0), (0, 10), (len(DATA), 5), (len(DATA) - 3, 10), (len(DATA) + 9, 4), (4 * MIB - 1, 2), (0, 1 << 60)]
    ranges += [(rng.randrange(len(DATA)), rng.randrange(100_000)) for _ in range(200)]
    for offset, length in ranges:
        assert file.read(offset, length) == DATA[offset : offset + length]
    buffer = bytearray(b"x" * 20)
    assert file.read_into(len(DATA) - 8, buffer) == 8
    assert buffer == b"tailtail" + b"x" * 12
    for bad in ((-1, 5), (5, -1)):
        with pytest.raises(ValueError, match="range"):
            list(file.extents(*bad))


def test_small_empty_and_middling_files_are_read(repository: Repository, root: bytes) -> None:
    reader = repository.reader()
    assert reader.open(reader.lookup(root, "small")).read(5, 100) == b"these"
    assert reader.open(reader.lookup(root, "empty")).read(0, 100) == b""
    assert list(reader.open(reader.lookup(root, "empty")).extents()) == []
    assert reader.open(reader.lookup(root, "sub/leaf")).read(MIB, MIB) == DATA[MIB : 2 * MIB]
    assert reader.lookup(root, "/sub//leaf/").name == b"leaf"
    with pytest.raises(IjfsError, match="not a file"):
        reader.open(reader.lookup(root, "sub"))


@pytest.mark.parametrize("name", ["small", "empty", "large", "sub/leaf"])
def test_a_file_of_another_size_than_its_entry_says_is_refused(repository: Repository, root: bytes, name: str) -> None:
    reader = repository.reader()
    entry = reader.lookup(root, name)
    for wrong in (entry.size + 1, max(entry.size - 1, 2)):
        with pytest.raises(CorruptError, match=f"{entry.size} bytes stored, its entry says {wrong}"):
            reader.open(msgspec.structs.replace(entry, size=wrong))


def test_extents_show_what_is_zero_without_reading(repository: Repository, root: bytes) -> None:
    store = CountingStore(repository)
    reader = Reader(store)  # type: ignore[arg-type]
    file = reader.open(reader.lookup(root, "large"))
    assert [tuple(e) for e in file.extents()] == [
        (0, 5 * MIB, False),
        (5 * MIB, 3 * MIB, True),
        (8 * MIB, 4000, False),
    ]
    assert [tuple(e) for e in file.extents(5 * MIB - 10, 20)] == [(5 * MIB - 10, 10, False), (5 * MIB, 10, True)]
    assert list(file.zeros(0, file.size)) == [(5 * MIB, 3 * MIB)]
    assert list(file.zeros(5 * MIB - 10, 20)) == [(5 * MIB, 10)]
    assert list(file.zeros(8 * MIB - 10, 4000)) == [(8 * MIB - 10, 10)]
    assert list(file.zeros(100, 200)) == []
    assert store.asked == []


def test_a_chunk_is_fetched_once_however_many_threads_want_it(repository: Repository, root: bytes) -> None:
    store = CountingStore(repository)
    store.delay = 0.02
    reader = Reader(store)  # type: ignore[arg-type]
    file = reader.open(reader.lookup(root, "large"))
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda i: file.read(i * 1000, 3 * MIB) == DATA[i * 1000 : i * 1000 + 3 * MIB], range(8))
        )
    assert all(results)
    assert len(store.asked) == len(set(store.asked))


def test_the_cache_keeps_to_its_limit(repository: Repository, root: bytes) -> None:
    reader = repository.reader(cache_bytes=MIB)
    file = reader.open(reader.lookup(root, "large"))
    for offset in range(0, len(DATA), 300_000):
        file.read(offset, 300_000)
        assert 0 < reader._chunks.used <= MIB
    reader.close()
    assert reader._chunks.used == 0
    assert file.read(10, 10) == DATA[10:20]


def test_what_was_fetched_ahead_is_not_fetched_again(repository: Repository, root: bytes) -> None:
    store = CountingStore(repository)
    reader = Reader(store)  # type: ignore[arg-type]
    file = reader.open(reader.lookup(root, "large"))
    file.prefetch(0, 2 * MIB)
    wanted = {piece.id for piece in file.slices(0, 2 * MIB)}
    assert eventually(lambda: all(ident in reader._chunks for ident in wanted if ident), every_s=0.005)
    fetched = len(store.asked)
    assert file.read(0, 2 * MIB) == DATA[: 2 * MIB]
    assert len(store.asked) == fetched
    reader.close()


def test_a_far_away_store_is_waited_for_once_per_request(
    repository: Repository, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    for module in (bulk, chunk_reader):
        monkeypatch.setattr(module, "simulate_latency", waits.append)
    reader = repository.reader(delay_s=0.05)
    file = reader.open(reader.lookup(root, "large"))
    file.read(0, MIB // 4)
    assert waits
    assert set(waits) == {0.05}
    assert len(waits) < 10
    so_far = len(waits)
    file.read(0, MIB // 4)
    assert len(waits) == so_far


def test_a_damaged_chunk_is_an_error_for_everyone_and_for_nobody_else(
    repository: Repository, root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = repository.reader()
    file = reader.open(reader.lookup(root, "large"))
    bad = next(file.slices(2 * MIB, 1)).id
    real = type(repository.store).get_chunks

    def damaged(self: object, ids: Sequence[bytes]) -> list[EncodedChunk]:
        time.sleep(0.01)
        chunks = real(repository.store, ids)
        return [c._replace(payload=bytes(len(c.payload))) if c.id == bad else c for c in chunks]

    monkeypatch.setattr(type(repository.store), "get_chunks", damaged)
    seen: list[str] = []

    def read(at: int) -> None:
        try:
            assert file.read(at, 1000) == DATA[at : at + 1000]
            seen.append("right")
        except CorruptError:
            seen.append("error")

    threads = [threading.Thread(target=read, args=(at,)) for at in [2 * MIB] * 6 + [0, 4 * MIB]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["error"] * 6 + ["right"] * 2
    monkeypatch.undo()
    assert file.read(2 * MIB, 1000) == DATA[2 * MIB : 2 * MIB + 1000]


def test_a_circle_of_bases_ends_in_an_error(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = chunk_id(b"one"), chunk_id(b"two")
    packed = zstandard.compress(bytes(8))
    frames = {
        ident: EncodedChunk(ident, Codec.XOR_ZSTD, 8, packed, pack_bases([BaseExtent(other, 0, 8)]), 1)
        for ident, other in ((one, two), (two, one))
    }
    monkeypatch.setattr(type(repository.store), "get_chunks", lambda self, ids: [frames[i] for i in ids])
    with pytest.raises(CorruptError, match="not deeper"):
        repository.reader().chunk(one)


def test_files_read_from_an_arena_and_from_bytes_are_the_same(repository: Repository) -> None:
    with repository.begin() as writer:
        writer.add_file("a", DATA)
        writer.add_file("b", Segments([memoryview(DATA)[:MIB], memoryview(DATA)[MIB:]]))
        root = writer.commit().root
    reader = repository.reader()
    assert reader.lookup(root, "a").content == reader.lookup(root, "b").content


def test_a_file_whose_leaf_lies_about_its_chunk_gives_an_error(repository: Repository, tmp_path: Path) -> None:
    files = image_set({7: {0x7F0000000000: DATA[:MIB]}})
    with repository.begin() as writer:
        writer.add_images("images", files)
        root = writer.commit().root
    reader = repository.reader()
    file = reader.open(reader.lookup(root, "images/pages-1.img"))
    piece = next(file.slices(0, MIB))
    lying = [piece._replace(offset=1 << 20)]
    with pytest.raises(CorruptError, match="does not have"):
        list(file._resolved(lying))
    with pytest.raises(CorruptError, match="its file says"):
        list(StoredFile(reader, [(file.leaves()[0][0], 5)], None).slices(0, 5))


def test_what_was_located_is_not_looked_up_again(repository: Repository, root: bytes) -> None:
    reader = repository.reader()
    file = reader.open(reader.lookup(root, "large"))
    file.locate()
    reader.store = CountingStore(repository)  # type: ignore[assignment]
    reader.store.chunk_rows = None  # type: ignore[assignment, method-assign]
    assert file.read(MIB, 4 * MIB) == DATA[MIB : 5 * MIB]


@pytest.mark.parametrize("wrong", ["moved", "nowhere", "nonsense"])
def test_places_that_were_true_once_do_no_harm(repository: Repository, root: bytes, wrong: str) -> None:
    """As after gc has moved frames: the chunks are looked up again, in one go and not one by one."""
    reader = repository.reader()
    file = reader.open(reader.lookup(root, "large"))
    file.locate()
    for leaf in reader.leaves([ident for ident, _ in file.leaves()]):
        rows = leaf.columns.rows or b""
        moved = rows[18:] + rows[:18]
        leaf.columns.place({"moved": moved, "nowhere": bytes(len(rows)), "nonsense": b"\xff" * len(rows)}[wrong])
    reader.store = store = CountingStore(repository)  # type: ignore[assignment]
    assert file.read(MIB, 4 * MIB) == DATA[MIB : 5 * MIB]
    assert store.asked == []
    columns = reader.leaves([file.leaves()[0][0]])[0].columns
    with pytest.raises(ValueError, match="bytes of rows"):
        columns.place(b"short")


def test_many_values_are_had_at_once_and_count_as_used() -> None:
    cache = ByteLru[str](2)
    cache.put(b"a", "A", 1)
    cache.put(b"b", "B", 1)
    assert cache.get_many([b"x", b"a"]) == {b"a": "A"}
    cache.put(b"c", "C", 1)
    assert cache.get_many([b"a", b"b", b"c"]) == {b"a": "A", b"c": "C"}


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteLru[str] = ByteLru(10)
    cache.put(b"a", "A", 4)
    cache.put(b"b", "B", 4)
    assert cache.get(b"a") == "A"
    cache.put(b"c", "C", 4)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == ("A", None, "C")
    cache.put(b"a", "A2", 6)
    assert (cache.used, cache.get(b"a")) == (10, "A2")
    cache.put(b"huge", "H", 11)
    assert b"huge" not in cache
    assert cache.used == 10
