"""In a long line of saves of which few are kept, pieces of old chunks do not hold the whole of them for ever."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from criu_images import image_set
from hypothesis import given
from hypothesis import strategies as st

from ijfs_engine import Repository, Snapshot
from ijfs_engine._native import extent_columns
from ijfs_engine._native.extent_columns import Columns
from ijfs_engine._native.idset import ChunkUse
from ijfs_engine.format.place import Place
from ijfs_engine.storage.worn import worn_chunks

PAGE = 4096
PAGES = 400
BASE = 0x7F00_0000_0000

Change = Callable[[bytearray, random.Random], None]


def overwrite(memory: bytearray, rng: random.Random, pages: int, size: int) -> None:
    for page in rng.sample(range(PAGES), pages):
        at = page * PAGE + rng.randrange(PAGE - size + 1)
        memory[at : at + size] = rng.randbytes(size)


WAYS: dict[str, Change] = {
    "whole pages": lambda memory, rng: overwrite(memory, rng, PAGES // 5, PAGE),
    "a third of half the pages": lambda memory, rng: overwrite(memory, rng, PAGES // 2, PAGE // 3),
    "both": lambda memory, rng: (overwrite(memory, rng, PAGES // 8, PAGE), overwrite(memory, rng, PAGES // 3, 800))[0],
}


def save(repository: Repository, memory: bytes, parent: Snapshot | None) -> Snapshot:
    with repository.begin([parent.id] if parent else []) as writer:
        writer.add_images("images", image_set({7: {BASE: memory}}))
        return writer.commit(branch="main")


def pages_of(repository: Repository, snapshot: Snapshot) -> bytes:
    reader = repository.reader()
    return reader.open(reader.lookup(snapshot.root, "images/pages-1.img")).read(0, 1 << 30)


def in_packs(repository: Repository) -> int:
    return sum(path.stat().st_size for path in repository.directory.packs.iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_a_line_of_saves_of_which_one_is_kept_stays_near_what_it_holds(tmp_path: Path, way: str) -> None:
    rng = random.Random(way)
    memory = bytearray(rng.randbytes(PAGES * PAGE))
    worst = 0.0
    with Repository.init(tmp_path / "repo") as repository:
        head: Snapshot | None = None
        for _ in range(14):
            new = save(repository, bytes(memory), head)
            if head:
                repository.remove(head.id)
            head = new
            repository.gc()
            assert pages_of(repository, head) == memory
            worst = max(worst, in_packs(repository) / len(memory))
            WAYS[way](memory, rng)
        assert repository.fsck().clean
    assert worst <= 1.6


def test_a_history_that_is_kept_costs_nothing_for_it(tmp_path: Path) -> None:
    """What the oldest snapshot has whole is not worn, whatever the newest has of it."""
    sizes = []
    for collects in (False, True):
        rng = random.Random(5)
        memory = bytearray(rng.randbytes(PAGES * PAGE))
        with Repository.init(tmp_path / f"repo{collects}") as repository:
            head: Snapshot | None = None
            for _ in range(6):
                head = save(repository, bytes(memory), head)
                if collects:
                    repository.gc()
                    assert worn_chunks(repository.index) == set()
                overwrite(memory, rng, PAGES // 3, PAGE)
            sizes.append(repository.du().total.stored)
    assert abs(sizes[0] - sizes[1]) <= 0.001 * sizes[0]


def test_a_program_that_stands_still_is_moved_out_of_worn_chunks_once(tmp_path: Path) -> None:
    rng = random.Random(6)
    memory = bytearray(rng.randbytes(PAGES * PAGE))
    with Repository.init(tmp_path / "repo") as repository:
        first = save(repository, bytes(memory), None)
        for page in range(0, PAGES, 2):
            memory[page * PAGE : (page + 1) * PAGE] = rng.randbytes(PAGE)
        second = save(repository, bytes(memory), first)
        repository.remove(first.id)
        repository.gc()
        worn = worn_chunks(repository.index)
        assert worn
        third = save(repository, bytes(memory), second)
        repository.remove(second.id)
        repository.gc()
        # A page lies in two chunks where one ends in it, and takes a little of the second along.
        assert len(worn_chunks(repository.index)) <= len(worn) // 4
        assert in_packs(repository) < 1.3 * len(memory)
        before = repository.stats().pack_bytes
        assert pages_of(repository, save(repository, bytes(memory), third)) == memory
        assert repository.stats().pack_bytes - before < len(memory) // 10


@given(st.data())
def test_the_use_of_chunks_is_counted_as_in_the_slow_twin(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=5))
    ids = [bytes([number + 1]) * 32 for number in range(len(sizes))]
    use = ChunkUse(len(ids))
    rows = b"".join(Place(1, 64, 100, size, 0, 0).encode() for size in sizes)
    use.add(b"".join(ids), rows)
    named = [set[int]() for _ in sizes]
    for _ in range(data.draw(st.integers(0, 6))):
        chunk = data.draw(st.integers(0, len(sizes) - 1))
        offset = data.draw(st.integers(0, sizes[chunk] - 1))
        length = data.draw(st.integers(1, sizes[chunk] - offset))
        use.name(b"".join(ids), *(array("I", [one]) for one in (chunk, offset, length)))
        named[chunk].update(range(offset * 64 // sizes[chunk], (offset + length - 1) * 64 // sizes[chunk] + 1))
    for least in (1, 20, 46, 64):
        worn = {use.worn(least)[at : at + 8] for at in range(0, len(use.worn(least)), 8)}
        assert worn == {ident[:8] for ident, parts in zip(ids, named, strict=True) if 0 < len(parts) < least}
    use.name_whole(ids[0])
    assert ids[0][:8] not in use.worn(64)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3 * PAGE)), min_size=1, max_size=8), st.data())
def test_pages_of_worn_chunks_are_marked_as_in_the_slow_twin(
    extents: list[tuple[int, int]], data: st.DataObject
) -> None:
    ids = [bytes([number + 1]) * 32 for number in range(3)]
    index, length = (array("I", column) for column in zip(*extents, strict=True))
    columns = Columns(b"".join(ids), index, array("I", bytes(4 * len(index))), length)
    pages = columns.size // PAGE
    inside = data.draw(st.integers(0, pages))
    count = data.draw(st.integers(0, pages - inside))
    first = data.draw(st.integers(0, 3))
    owner = [chunk for chunk, size in extents for _ in range(size)]
    marks = bytearray(first + count + 1)
    extent_columns.mark_pages_of({ids[1][:8]}, marks, [(first, count, columns, inside)])
    expected = bytearray(len(marks))
    for page in range(count):
        at = (inside + page) * PAGE
        expected[first + page] = 1 in owner[at : at + PAGE]
    assert marks == expected
    with pytest.raises(ValueError, match="not there"):
        extent_columns.mark_pages_of(set(), marks, [(0, pages + 1, columns, 0)])
