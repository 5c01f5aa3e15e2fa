"""Large buffers that a thread uses again: to map, zero and fault in megabytes takes as long as to fill them."""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Final

# Sizes go up in steps, so that a buffer is seldom replaced by one a little larger. What is never touched costs nothing.
_STEP: Final = 4 << 20
# Of what is shorter a huge page would zero more than is used.
_HUGE: Final = 2 << 20
# Shared memory, which is what mmap makes unless told otherwise, gets no huge pages.
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, mmap.mmap] = {}


_held = _Held()


def private(size: int) -> mmap.mmap:
    """Zeros of this process alone."""
    return mmap.mmap(-1, size, flags=_PRIVATE)


def take(name: str, size: int) -> memoryview:
    """`size` bytes that hold anything, this thread's until it takes `name` again."""
    buffer = _held.buffers.get(name)
    if buffer is None or len(buffer) < size:
        buffer = _held.buffers[name] = private(max(1, -(-size // _STEP)) * _STEP)
        if size >= _HUGE:
            # One fault instead of 512.
            with contextlib.suppress(OSError):
                buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(buffer)[:size]
