"""What several pagers read only once: blocks of the working set of siblings that come up together."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ijfs.live.pager import shared
from ijfs.live.pager.plan import Mapping, ProcessMemory, Run
from ijfs.live.pager.shared import Fill, SharedBlocks
from ijfs.live.pager.task import PageRange, Task
from ijfs_engine import PAGE

PAGES = 64
IMAGE = ProcessMemory(7, [Run(PAGE, PAGES, 0)], [Mapping(PAGE, PAGE * (PAGES + 1), False)])


@pytest.fixture
def blocks() -> Iterator[SharedBlocks]:
    found = SharedBlocks(PAGES)
    yield found
    found.close()


def block(number: int, ranges: list[PageRange] | None = None) -> Task:
    task = Task(IMAGE, ranges or [(0, 8), (16, 8)])
    task.block = number
    return task


def filling(byte: int, note: Callable[[], object] = lambda: None) -> Fill:
    def fill(task: Task, place: memoryview) -> None:
        note()
        place[:] = bytes((byte,)) * len(place)
        task.zeros = [(2, 3)]

    return fill


def never(task: Task, place: memoryview) -> None:
    raise AssertionError("this block was there")


def content(task: Task, address: int | None) -> bytes:
    assert address is not None
    return ctypes.string_at(address, task.pages * PAGE)


def child(work: Callable[[], bool]) -> int:
    """A forked process that ends with 0 when `work` is true."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return pid


def succeeded(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_block_is_read_by_one_of_several_processes(blocks: SharedBlocks, tmp_path: Path) -> None:
    def read() -> bool:
        task = block(3)
        address = blocks.bring(task, filling(5, lambda: (time.sleep(0.1), (tmp_path / str(os.getpid())).touch())))
        return content(task, address) == b"\5" * 16 * PAGE and task.zeros == [(2, 3)]

    pids = [child(read) for _ in range(4)]
    assert [succeeded(pid) for pid in pids] == [True] * 4
    assert len(list(tmp_path.iterdir())) == 1


def test_another_order_does_not_get_these_bytes_and_spoils_none(blocks: SharedBlocks) -> None:
    blocks.bring(block(0), filling(1))
    assert blocks.bring(block(0, [(0, 8), (16, 9)]), never) is None
    again = block(0)
    assert content(again, blocks.bring(again, never)) == b"\1" * 16 * PAGE


def test_what_could_not_be_read_is_not_handed_on(blocks: SharedBlocks) -> None:
    def spoil(task: Task, place: memoryview) -> None:
        task.bad.add(0)

    assert blocks.bring(block(1), spoil) is None
    task = block(1)
    assert content(task, blocks.bring(task, filling(2))) == b"\2" * 16 * PAGE


def test_a_pager_that_is_killed_while_it_reads_leaves_the_block_to_the_next(blocks: SharedBlocks) -> None:
    ready, begun = os.pipe()

    def hang(task: Task, place: memoryview) -> None:
        place[:PAGE] = b"\xff" * PAGE
        os.write(begun, b"x")
        time.sleep(60)

    pid = child(lambda: blocks.bring(block(2), hang) is not None)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    task = block(2)
    assert content(task, blocks.bring(task, filling(4))) == b"\4" * 16 * PAGE
    assert not succeeded(pid)
    os.close(ready)
    os.close(begun)


def test_nobody_waits_for_a_pager_that_stands_still(blocks: SharedBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, begun = os.pipe()
    monkeypatch.setattr(shared, "WAIT_S", 0.2)

    def hang(task: Task, place: memoryview) -> None:
        os.write(begun, b"x")
        time.sleep(60)

    pid = child(lambda: blocks.bring(block(2), hang) is not None)
    try:
        os.read(ready, 1)
        assert blocks.bring(block(2), never) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(begun)


def test_more_blocks_than_there_are_places_for_and_what_is_no_block_are_read_alone(blocks: SharedBlocks) -> None:
    assert blocks.bring(block(100_000), never) is None
    assert blocks.bring(Task(IMAGE, [(0, 16)]), never) is None
