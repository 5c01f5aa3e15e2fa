"""Files that grow in an arena hold what was put into them, in memory and beyond it."""

from __future__ import annotations

import gc
import mmap
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ijfs_engine.errors import StorageError
from ijfs_engine.write.arena import Arena, ArenaFile, ArenaFullError

PAGE = mmap.PAGESIZE
sizes = st.sampled_from([0, 1, 7, PAGE - 1, PAGE, 5 * PAGE + 3, 70_000, 200_000])
steps = st.lists(st.tuples(st.integers(0, 2), sizes), max_size=12)


def content(file: ArenaFile) -> bytes:
    return b"".join(file.segments())


def append(file: ArenaFile, data: bytes) -> None:
    """Let it grow, as who receives a dump does."""
    left = memoryview(data)
    while left:
        tail = file.tail(len(left))
        tail[:] = left[: len(tail)]
        file.advance(len(tail))
        left = left[len(tail) :]


@settings(deadline=None, max_examples=80)
@given(steps, st.sampled_from([None, 0, PAGE, 49 * PAGE]))
def test_files_that_grow_side_by_side_hold_what_was_written(todo: list[tuple[int, int]], limit: int | None) -> None:
    arena = Arena(16 << 20)
    with tempfile.TemporaryDirectory() as place:
        arena.reset(limit=limit, spill=Path(place))
        _write_side_by_side(arena, todo)
    assert limit is None or arena.used <= limit


def _write_side_by_side(arena: Arena, todo: list[tuple[int, int]]) -> None:
    files = [arena.new_file() for _ in range(3)]
    models = [b"", b"", b""]
    for number, (which, size) in enumerate(todo):
        data = bytes([number + 1]) * size
        append(files[which], data)
        models[which] += data
        assert files[which].size == files[which].segments().nbytes == len(models[which])
    assert [content(file) for file in files] == models


def test_a_full_arena_says_so_and_is_as_good_as_new_after_a_reset() -> None:
    arena = Arena(1 << 20)
    arena.prefault(arena.capacity)
    file = arena.new_file()
    with pytest.raises(ArenaFullError, match="1048576"):
        append(file, b"x" * ((1 << 20) + 1))
    assert content(file) == b"x" * (1 << 20)
    with pytest.raises(ArenaFullError):
        append(arena.new_file(), b"y")
    arena.reset()
    again = arena.new_file()
    append(again, b"new")
    assert content(again) == b"new"
    assert arena.used <= arena.capacity


def test_many_small_files_take_little_more_than_they_hold() -> None:
    """A program of 1,000 threads is as many images of 1 KiB; a checkout is as many files of any size."""
    arena = Arena(64 << 20)
    unknown = [arena.new_file() for _ in range(1000)]
    for number, file in enumerate(unknown):
        append(file, bytes([number % 256]) * 1000)
    assert arena.used <= 1000 * 4096
    before = arena.used
    known = [arena.new_file(1000) for _ in range(1000)]
    for number, file in enumerate(known):
        append(file, bytes([number % 255]) * 1000)
    assert arena.used - before <= 1000 * 1024
    append(large := arena.new_file(), b"x" * (1 << 20))
    assert [content(file)[:1] for file in known] == [bytes([number % 255]) for number in range(1000)]
    assert [content(file) for file in unknown] == [bytes([number % 256]) * 1000 for number in range(1000)]
    assert content(large) == b"x" * (1 << 20)


def test_a_file_that_grows_past_what_was_expected_goes_on() -> None:
    file = Arena(1 << 20).new_file(100)
    append(file, bytes(range(256)) * 40)
    assert content(file) == bytes(range(256)) * 40


def test_what_a_tail_got_counts_only_when_it_is_said() -> None:
    file = Arena(1 << 20).new_file()
    tail = file.tail(10)
    assert 1 <= len(tail) <= 10
    tail[:3] = b"abc"
    assert file.size == 0
    file.advance(2)
    assert content(file) == b"ab"
    with pytest.raises(ValueError, match="more than"):
        file.advance(1 << 20)
    assert file.segments()[0].readonly


def test_what_is_more_than_the_memory_lies_on_disk_and_leaves_nothing_there(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    arena = Arena(4 << 20)
    arena.reset(limit=1 << 20, spill=tmp_path)
    file = arena.new_file()
    data = os.urandom(3 << 20)
    append(file, data)
    assert content(file) == data
    assert arena.used == 1 << 20
    assert arena.spilled == 2 << 20
    assert list(tmp_path.iterdir()) == []
    segments = file.segments()
    arena.reset()
    assert arena.spilled == 0
    assert bytes(segments[-1][-100:]) == data[-100:], "a file on disk lives as long as somebody looks at it"
    del segments, file
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_the_disk_is_bounded_too(tmp_path: Path) -> None:
    arena = Arena(1 << 20, spill=tmp_path)
    with pytest.raises(ArenaFullError, match="beyond its memory"):
        append(arena.new_file(), bytes((2 << 20) + 1))


def test_a_disk_without_room_is_an_error_and_no_signal(tmp_path: Path) -> None:
    file = Arena(1 << 20, spill=Path("/proc")).new_file()
    with pytest.raises(StorageError, match="no room on disk"):
        append(file, bytes(2 << 20))


def test_what_rests_is_there_for_the_next_dump() -> None:
    arena = Arena(8 << 20)
    append(arena.new_file(), b"old" * (1 << 20))
    arena.rest()
    assert arena.used == 0
    file = arena.new_file()
    append(file, b"new" * (1 << 20))
    assert content(file) == b"new" * (1 << 20)
