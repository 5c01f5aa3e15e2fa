"""What siblings that come up at once need first, read and decoded by one of their pagers for all of them.

The blocks of the working set are the same in each pager, so that block N has a place of its own in a memfd which
the forkserver made and every pager inherited. The pager that comes to a block first locks its place, fills it and notes
what is in it; the others copy from there. A place that was filled is never written again. A pager that finds another
block there, or that waits in vain, reads for itself. Called by fetch.py.

The locks are POSIX record locks, because the kernel frees those of a process that dies. (Those of a pager's worker are
freed with its supervisor only, which is one reason for WAIT_S.)
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Final

from ijfs.live.pager.task import Task
from ijfs_engine import PAGE

_HEAD: Final = struct.Struct("<16sI")
_RANGE: Final = struct.Struct("<II")
_MOST_ZEROS: Final = (PAGE - _HEAD.size) // _RANGE.size
_MOST: Final = 256
"""Blocks that have a place; later ones are read by each pager for itself."""
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ, Linux 5.14
WAIT_S: Final = 1.0
"""How long another pager gets for a block, which takes 3 ms on a core of its own. With 0.05 s, of 8 siblings on 2 cores
each still read a third of the blocks for itself, and all had answered after 1.37 s instead of 1.0."""
_POLL_S: Final = 0.001

Fill = Callable[[Task, memoryview], None]


class SharedBlocks:
    """The places, mapped; `pages` is the most that one block has. A forked child has them too. Memory is taken as
    places are filled, and gone with the last pager."""

    def __init__(self, pages: int) -> None:
        self._stride = PAGE + pages * PAGE
        self._fd = os.memfd_create("ijfs-siblings")
        os.ftruncate(self._fd, _MOST * self._stride)
        self._memory = mmap.mmap(self._fd, _MOST * self._stride)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a forked child has to keep open."""
        return (self._fd,)

    def close(self) -> None:
        """Let go of them: in a process that is no pager."""
        self._memory.close()
        os.close(self._fd)

    def bring(self, task: Task, fill: Fill) -> int | None:
        """The address where a block's pages lie, and its zeros in the task; None where it is to be read alone."""
        if task.block is None or task.block >= _MOST or not self._lock(task.block):
            return None
        try:
            at = task.block * self._stride
            if not self._is_there(at, task) and not self._make(at, task, fill):
                return None
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, task.block)
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory, at + PAGE))

    def _lock(self, block: int) -> bool:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError, PermissionError):  # another's: POSIX allows either error
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
                return True
            time.sleep(_POLL_S)
        return False

    def _is_there(self, at: int, task: Task) -> bool:
        name, count = _HEAD.unpack_from(self._memory, at)
        if name != _name(task):
            return False
        task.zeros = list(_RANGE.iter_unpack(self._memory[at + _HEAD.size : at + _HEAD.size + count * _RANGE.size]))
        with contextlib.suppress(OSError):  # an older kernel: each page is looked up as it is copied
            self._memory.madvise(_POPULATE_READ, at + PAGE, task.pages * PAGE)
        return True

    def _make(self, at: int, task: Task, fill: Fill) -> bool:
        if self._memory[at : at + _HEAD.size] != bytes(_HEAD.size):
            return False  # another order's
        with memoryview(self._memory) as memory, memory[at + PAGE : at + PAGE + task.pages * PAGE] as place:
            fill(task, place)
        if task.bad or len(task.zeros) > _MOST_ZEROS:
            return False
        for number, zeros in enumerate(task.zeros):
            _RANGE.pack_into(self._memory, at + _HEAD.size + number * _RANGE.size, *zeros)
        _HEAD.pack_into(self._memory, at, _name(task), len(task.zeros))
        return True


def _name(task: Task) -> bytes:
    return hashlib.blake2b(repr((task.memory.pid, task.ranges)).encode(), digest_size=16).digest()
