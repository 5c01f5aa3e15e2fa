"""CRIU image sets stored against their parents': every byte comes back, and only what is new takes room."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from criu_images import PAGE, PE_PARENT, PE_PRESENT, image_set, pagemap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ijfs_engine import Reader, Repository, Segments, Snapshot
from ijfs_engine.format.frames import Codec, FrameKind

BASE = 0x7F00_0000_0000
MIB = 1 << 20


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def save(repository: Repository, files: Mapping[str, object], *parents: Snapshot) -> Snapshot:
    with repository.begin([parent.id for parent in parents]) as writer:
        writer.add_images("images", files)  # type: ignore[arg-type]
        return writer.commit()


def check(repository: Repository, snapshot: Snapshot, files: Mapping[str, bytes]) -> Reader:
    """Every file reads back as it was; a reader for more questions."""
    reader = repository.reader()
    tree = reader.tree(reader.lookup(snapshot.root, "images").content or b"")
    assert [entry.name.decode() for entry in tree.entries] == sorted(files)
    for entry in tree.entries:
        assert reader.open(entry).read(0, 1 << 40) == files[entry.name.decode()]
    return reader


def stored(repository: Repository) -> int:
    return repository.stats().pack_bytes


def grown(repository: Repository, files: Mapping[str, object], *parents: Snapshot) -> tuple[int, Snapshot]:
    before = stored(repository)
    snapshot = save(repository, files, *parents)
    return stored(repository) - before, snapshot


def change(data: bytes, *places: int, word: bytes = b"new word") -> bytes:
    out = bytearray(data)
    for place in places:
        out[place : place + len(word)] = word
    return bytes(out)


def test_an_unchanged_image_stores_no_bytes_and_no_leaves(repository: Repository) -> None:
    files = image_set({7: {BASE: noise(9 * MIB, 1), BASE + 64 * MIB: bytes(3 * MIB)}})
    first = save(repository, files)
    more, second = grown(repository, files, first)
    assert more < 1000
    assert second.root == first.root
    check(repository, second, files)


def test_scattered_changes_are_stored_as_differences(repository: Repository) -> None:
    data = noise(8 * MIB, 2)
    first = save(repository, image_set({7: {BASE: data}}))
    places = [random.Random(3).randrange(8 * MIB - 8) for _ in range(300)]
    files = image_set({7: {BASE: change(data, *places)}})
    more, second = grown(repository, files, first)
    # 300 pages of noise are 1.2 MB; their changed words a few kilobytes, besides bases, leaves and fingerprints.
    assert more < 120_000
    check(repository, second, files)


def test_a_save_has_nothing_read_ahead_of_its_parent(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(12 * MIB, 2)
    first = save(repository, image_set({7: {BASE: data}}))
    files = image_set({7: {BASE: change(data, *range(0, 12 * MIB, 16 * PAGE))}})
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: asked.append(length))
    second = save(repository, files, first)
    assert not asked
    check(repository, second, files)
    assert asked


def test_a_chain_of_differences_is_bounded(repository: Repository) -> None:
    data, parents = noise(MIB, 4), []
    for generation in range(12):
        data = change(data, 5000, 300_000, word=b"%08d" % generation)
        files = image_set({7: {BASE: data}})
        parents.append((save(repository, files, *(s for s, _ in parents[-1:])), files))
    depths = set()
    for snapshot, files in parents:
        reader = check(repository, snapshot, files)
        entry = reader.lookup(snapshot.root, "images/pages-1.img")
        ids = [piece.id for piece in reader.open(entry).slices(0, MIB) if piece.id]
        depths |= {info.depth for info in repository.store.chunk_info(ids) if info}
    assert depths == {0, 1, 2, 3, 4}


def test_memory_that_moved_is_found_by_its_bytes(repository: Repository) -> None:
    data = noise(4 * MIB, 5)
    first = save(repository, image_set({7: {BASE: data}}))
    # 24 bytes further, at other addresses: no page is equal, nearly all chunks are.
    files = image_set({7: {BASE + 512 * MIB: noise(24, 6) + data[:-24]}})
    more, second = grown(repository, files, first)
    assert more < MIB
    check(repository, second, files)


def test_zero_pages_are_not_stored_and_shown_as_zeros(repository: Repository) -> None:
    files = image_set({7: {BASE: noise(MIB, 7) + bytes(6 * MIB) + noise(MIB, 8)}})
    more, snapshot = grown(repository, files)
    assert more < 2.1 * MIB
    reader = check(repository, snapshot, files)
    file = reader.open(reader.lookup(snapshot.root, "images/pages-1.img"))
    assert [tuple(extent) for extent in file.extents()] == [
        (0, MIB, False),
        (MIB, 6 * MIB, True),
        (7 * MIB, MIB, False),
    ]


def test_each_process_is_compared_with_its_own_parent_whatever_the_files_are_called(repository: Repository) -> None:
    one, two = noise(2 * MIB, 9), noise(2 * MIB, 10)
    first = save(repository, image_set({7: {BASE: one}, 8: {BASE: two}}))
    more, second = grown(repository, image_set({8: {BASE: two}, 7: {BASE: one}}, first_id=5), first)
    assert more < 3000
    check(repository, second, image_set({8: {BASE: two}, 7: {BASE: one}}, first_id=5))


def test_another_pid_finds_the_image_with_the_same_addresses(repository: Repository) -> None:
    data = noise(3 * MIB, 11)
    first = save(repository, image_set({7: {BASE: data}, 9: {BASE * 2: noise(2 * MIB, 12)}}))
    more, _ = grown(repository, image_set({70: {BASE: change(data, 100)}}), first)
    assert more < 20_000


def test_mappings_that_come_go_and_grow_keep_the_rest_shared(repository: Repository) -> None:
    heap, stack, library = noise(5 * MIB, 13), noise(MIB, 14), noise(6 * MIB, 15)
    first = save(repository, image_set({7: {BASE: heap, BASE + 99 * MIB: library, BASE + 200 * MIB: stack}}))
    after = {
        BASE - 7 * PAGE: noise(3 * PAGE, 16),
        BASE: heap + noise(2 * MIB, 17),
        BASE + 50 * MIB: noise(MIB, 18),
        BASE + 101 * MIB: library[2 * MIB :],
        BASE + 200 * MIB: stack,
    }
    more, second = grown(repository, image_set({7: after}), first)
    assert more < 3.2 * MIB
    check(repository, second, image_set({7: after}))


def test_float_weights_take_less_room_than_their_bytes(repository: Repository) -> None:
    numpy = pytest.importorskip("numpy")
    weights = numpy.random.default_rng(1).normal(0, 0.02, MIB).astype("float32")
    files = image_set({7: {BASE: weights.tobytes()}})
    more, first = grown(repository, files)
    assert more < 0.87 * 4 * MIB
    check(repository, first, files)
    step = image_set({7: {BASE: (weights * numpy.float32(1.0001)).tobytes()}})
    more, second = grown(repository, step, first)
    assert more < 0.75 * 4 * MIB
    check(repository, second, step)


def test_dropped_fingerprints_cost_time_but_no_bytes(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(3 * MIB, 19)
    first = save(repository, image_set({7: {BASE: data}}))
    monkeypatch.setattr(type(repository.store), "sidecars", lambda self, leaves: [None] * len(leaves))
    files = image_set({7: {BASE: change(data, 5000)}})
    more, second = grown(repository, files, first)
    # The fingerprints of the one changed leaf are written anew, whole.
    assert more < 3 * MIB // PAGE * 16 + 10_000
    monkeypatch.undo()
    check(repository, second, files)
    more, _ = grown(repository, image_set({7: {BASE: change(data, 5000, 9000)}}), second)
    assert more < 10_000


def leaf_of(repository: Repository, snapshot: Snapshot) -> bytes:
    """The one leaf of the image of process 7."""
    reader = repository.reader()
    ((leaf, _),) = reader.open(reader.lookup(snapshot.root, "images/pages-1.img")).leaves()
    return leaf


def attach(repository: Repository, leaf: bytes, fingerprints: bytes) -> None:
    """What somebody can do who writes packs, and their checksums, but does not know the secret."""
    with repository.session() as session:
        session.put_sidecar(leaf, fingerprints)
        session.publish()


def test_the_fingerprints_of_another_leaf_deceive_nobody(repository: Repository) -> None:
    old, new = (image_set({7: {BASE: noise(MIB, seed)}}) for seed in (40, 41))
    first, second = save(repository, old), save(repository, new)
    forged = repository.store.sidecars([leaf_of(repository, second)])[0]
    assert forged is not None
    attach(repository, leaf_of(repository, first), forged)
    check(repository, save(repository, new, first), new)


def test_fingerprints_without_a_seal_are_made_anew(repository: Repository) -> None:
    files = image_set({7: {BASE: noise(MIB, 42)}})
    first = save(repository, files)
    leaf = leaf_of(repository, first)
    sealed = repository.store.sidecars([leaf])[0]
    assert sealed is not None
    attach(repository, leaf, b"\1" + sealed[1:])
    more, second = grown(repository, files, first)
    assert leaf_of(repository, second) == leaf
    assert repository.store.sidecars([leaf]) == [sealed]
    assert more < MIB // PAGE * 3 + 2000, "the fingerprints alone"
    assert repository.fsck().clean


def test_images_are_read_the_same_from_memory_arena_and_disk(repository: Repository, tmp_path: Path) -> None:
    files = image_set({7: {BASE: noise(2 * MIB, 20) + bytes(MIB) + noise(3 * MIB, 21)}})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pieces = {
        name: Segments(memoryview(d)[i : i + 70_001] for i in range(0, len(d), 70_001)) for name, d in files.items()
    }
    roots = {save(repository, source).root for source in (files, pieces, {n: tmp_path / n for n in files})}
    assert len(roots) == 1
    check(repository, repository.snapshots()[0], files)
    shutil.rmtree(tmp_path / "repo", ignore_errors=True)


@pytest.mark.parametrize(
    "lie",
    [
        pagemap(1, [(BASE, 300, PE_PRESENT)]),
        pagemap(1, [(BASE, 128, PE_PRESENT), (BASE + 64 * PAGE, 128, PE_PRESENT)]),
        pagemap(1, [((1 << 64) - 128 * PAGE, 256, PE_PRESENT)]),
        pagemap(1, [(BASE + 1, 256, PE_PRESENT)]),
        pagemap(1, [(BASE, 256, PE_PARENT)]),
        pagemap(1, [(BASE, (1 << 32) - 1, PE_PRESENT)]),
        pagemap(2, [(BASE, 256, PE_PRESENT)]),
        pagemap(1, [(BASE, 256, PE_PRESENT)])[:-1],
        b"",
        noise(100, 22),
    ],
)
def test_a_pagemap_that_does_not_fit_leaves_plain_bytes(repository: Repository, lie: bytes) -> None:
    good = image_set({7: {BASE: noise(MIB, 23)}})
    first = save(repository, good)
    files = {**good, "pagemap-7.img": lie}
    more, second = grown(repository, files, first)
    reader = check(repository, second, files)
    assert reader.open(reader.lookup(second.root, "images/pages-1.img")).layout is None
    assert more < 5000  # found by its bytes all the same
    third = save(repository, good, second)
    assert check(repository, third, good).open(reader.lookup(third.root, "images/pages-1.img")).layout is not None


def test_pages_are_read_by_address(repository: Repository) -> None:
    one, two = noise(5 * PAGE, 24), noise(3 * PAGE, 25)
    snapshot = save(repository, image_set({7: {BASE: one, BASE + 8 * PAGE: two}}))
    reader = repository.reader()
    file = reader.open(reader.lookup(snapshot.root, "images/pages-1.img"))
    assert file.layout is not None
    assert [tuple(run) for run in file.layout.runs] == [(BASE // PAGE, 5), (BASE // PAGE + 8, 3)]
    buffer = memoryview(bytearray(b"x" * 7 * PAGE))
    first = BASE // PAGE + 3
    assert file.read_pages(first, 7, buffer) == [(first, 2), (first + 5, 2)]
    assert buffer == one[3 * PAGE :] + b"x" * 3 * PAGE + two[: 2 * PAGE]


# A small world: few pages, few contents, so that zero, same, moved and changed pages meet in all orders.
contents = st.sampled_from([bytes(PAGE), noise(PAGE, 30), noise(PAGE, 31), b"abcdefgh" * 512])
touches = st.lists(st.integers(0, PAGE - 8), max_size=2)
mapping = st.lists(st.tuples(contents, touches), min_size=1, max_size=12).map(
    lambda pages: b"".join(change(data, *places) for data, places in pages)
)
places = st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 1, 2])).map(lambda p: BASE + (p[0] * 16 + p[1]) * PAGE)
memory = st.lists(st.tuples(places, mapping), max_size=3, unique_by=lambda m: (m[0] - BASE) // PAGE // 16).map(dict)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(memory, min_size=1, max_size=4), st.integers(20, 60))
def test_any_history_of_a_process_comes_back(
    repository: Repository, history: list[dict[int, bytes]], repeat: int
) -> None:
    saved: list[tuple[Snapshot, dict[str, bytes]]] = []
    for generation in history:
        files = image_set({7: {BASE - 8 * MIB: noise(repeat * PAGE, 32), **generation}})
        saved.append((save(repository, files, *(s for s, _ in saved[-1:])), files))
    for snapshot, files in saved:
        check(repository, snapshot, files)


def test_a_leaf_that_moved_by_a_page_is_not_taken_for_its_neighbours(repository: Repository) -> None:
    # The same extents, so the same leaf with the same attachment, one page further; then what was there, a page back.
    pages = [bytes(PAGE), *(noise(PAGE, 40 + i) for i in range(40))]
    first = save(repository, image_set({7: {BASE + PAGE: b"".join(pages)}}))
    second = save(repository, image_set({7: {BASE + 2 * PAGE: b"".join(pages)}}), first)
    files = image_set({7: {BASE + 2 * PAGE: b"".join([*pages[1:], pages[0]])}})
    check(repository, save(repository, files, second), files)


def test_the_codecs_in_use_are_those_that_the_format_names(repository: Repository) -> None:
    draw = random.Random(33)
    text = b"".join(draw.choices([b"a ", b"text ", b"of ", b"words\n"], k=MIB // 2))
    counts = struct.pack("<65536Q", *(draw.randrange(100) for _ in range(65536)))
    data = noise(MIB, 33) + text[:MIB] + counts
    first = save(repository, image_set({7: {BASE: data}}))
    second = save(repository, image_set({7: {BASE: change(data, 4096 * 3)}}), first)
    reader = repository.reader()
    codecs = set()
    for snapshot in (first, second):
        file = reader.open(reader.lookup(snapshot.root, "images/pages-1.img"))
        ids = [piece.id for piece in file.slices(0, file.size) if piece.id]
        codecs |= {info.codec for info in repository.store.chunk_info(ids) if info}
        assert (
            repository.store.kind_of(reader.lookup(snapshot.root, "images/pages-1.img").content or b"")
            == FrameKind.FILE
        )
    assert codecs == {Codec.RAW, Codec.ZSTD, Codec.XOR_ZSTD, Codec.NUMBERS}
