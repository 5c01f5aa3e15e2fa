"""`gc(recompress=True)`: the same bytes in fewer, safe beside saves, and said beforehand by a dry run."""

from __future__ import annotations

import random
import struct
from itertools import accumulate
from pathlib import Path

import pytest
from criu_images import PAGE, image_set
from cryptkit import make
from storekit import damage, frame_of, pack_paths

from ijfs_engine import Repository, Snapshot
from ijfs_engine.format.frames import Codec
from ijfs_engine.format.place import Place
from ijfs_engine.maintenance import recompress
from ijfs_engine.storage import key_files
from ijfs_engine.storage.index import CHUNKS

WORDS = random.Random(1).choices([b"import", b"return", b"self", b"value", b"0.125", b"for", b"in", b"\n", b" "], k=900)


def prose(size: int, seed: int) -> bytes:
    """Bytes that zstd packs better when it takes its time."""
    rng = random.Random(seed)
    return b"".join(rng.choice(WORDS) + b"%x" % rng.getrandbits(rng.choice((4, 8))) for _ in range(size // 4))[:size]


def times(size: int) -> bytes:
    """Numbers that grow by steps that come again: zstd sees them in their differences only."""
    rng = random.Random(4)
    lines = [[rng.randrange(200) for _ in range(rng.randrange(5, 20))] for _ in range(300)]
    steps: list[int] = []
    while len(steps) < size // 8:
        steps += [*rng.choice(lines), rng.randrange(200)]
    return struct.pack(f"<{size // 8}Q", *accumulate(steps[: size // 8]))


def grow(repository: Repository) -> list[tuple[Snapshot, dict[str, bytes]]]:
    """A file and two saves of a program, the second with differences to the first."""
    memory, saved = bytearray(prose(96 * PAGE, 2)), []
    for _ in range(2):
        files = {"f": prose(300_000, 3) + times(400_000), **image_set({7: {0x7F00_0000_0000: bytes(memory)}})}
        with repository.begin([snapshot.id for snapshot, _ in saved[-1:]]) as writer:
            writer.add_file("images/f", files["f"])
            writer.add_images("images", {name: data for name, data in files.items() if name != "f"})
            saved.append((writer.commit(branch="main"), files))
        for page in range(0, 96, 3):
            memory[page * PAGE + 100 : page * PAGE + 108] = b"changed!"
    return saved


def check(repository: Repository, saved: list[tuple[Snapshot, dict[str, bytes]]]) -> None:
    reader = repository.reader()
    for snapshot, files in saved:
        for name, data in files.items():
            assert reader.open(reader.lookup(snapshot.root, f"images/{name}")).read(0, 1 << 30) == data
    assert repository.fsck().clean


def taken(repository: Repository, codec: Codec) -> int:
    """Bytes of the chunks that are stored so."""
    with repository.index.read() as view:
        places = [Place.decode(row) for _, row in view.items(CHUNKS)]
    return sum(place.span for place in places if place.tag == codec)


def state(repository: Repository) -> tuple[object, ...]:
    with repository.index.read() as view:
        rows = list(view.items(CHUNKS))
    return rows, [(path, path.read_bytes()) for path in pack_paths(repository)]


def test_what_stays_takes_fewer_bytes_and_is_the_same(repository: Repository) -> None:
    saved = grow(repository)
    repository.gc()
    with repository.index.read() as view:
        codecs = {row[-2] for _, row in view.items(CHUNKS)}
    assert codecs >= {Codec.ZSTD, Codec.XOR_ZSTD, Codec.NUMBERS}
    before, stored, numbers = state(repository), repository.du().total.stored, taken(repository, Codec.NUMBERS)
    expected = repository.gc(dry_run=True, recompress=True)
    assert state(repository) == before, "a dry run writes nothing"
    report = repository.gc(recompress=True)
    assert report.chunks_recompressed == expected.chunks_recompressed > 3
    assert abs(report.bytes_after - expected.bytes_after) <= 4096 * (len(pack_paths(repository)) + 1)
    assert taken(repository, Codec.NUMBERS) < 0.97 * numbers
    saving = stored - repository.du().total.stored
    assert saving > 0.05 * stored
    assert report.freed >= saving - 2 * 4096
    check(repository, saved)
    again = repository.gc(recompress=True)
    assert (again.chunks_recompressed, again.packs_rewritten) == (0, 0)


def test_an_encrypted_repository_is_packed_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "MEMORY_KIB", 64)
    monkeypatch.setattr(key_files, "_PASSES", 1)
    with make(tmp_path / "r") as repository:
        saved = grow(repository)
        assert repository.gc(recompress=True).chunks_recompressed
        check(repository, saved)


def test_a_damaged_chunk_stays_as_it_is(repository: Repository) -> None:
    grow(repository)
    repository.gc()
    with repository.index.read() as view:
        ident = next(bytes(ident) for ident, row in view.items(CHUNKS) if row[-2] == Codec.ZSTD)
        row = view.get(CHUNKS, ident)
    path, offset = frame_of(repository, ident)
    damage(path, offset + 200)
    assert repository.gc(recompress=True).chunks_recompressed
    with repository.index.read() as view:
        assert view.get(CHUNKS, ident) == row
    assert ident in {found.id for found in repository.fsck().damage}


def test_a_save_beside_it_counts_on_what_it_has_found(repository: Repository) -> None:
    saved = grow(repository)
    with repository.begin() as writer:
        writer.add_file("images/f", saved[0][1]["f"])
        repository.gc(recompress=True)
        snapshot = writer.commit(branch="other")
    check(repository, [*saved, (snapshot, {"f": saved[0][1]["f"]})])


def test_on_a_disk_that_gets_full_it_ends_early_and_says_how_far_it_came(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = grow(repository)
    monkeypatch.setattr(recompress, "_BATCH", 2)
    answers = iter([True, False])
    monkeypatch.setattr(recompress, "_has_room", lambda repository, more: next(answers))
    assert 0 < repository.gc(recompress=True).chunks_recompressed <= 2
    check(repository, saved)
