"""Large buffers that a thread uses again: to map, zero and fault in megabytes takes as long as to fill them."""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Final

# Sizes go up in steps, so that a buffer is seldom replaced by one a little larger. What is never touched costs nothing.
_STEP: Final = 4 << 20


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, mmap.mmap] = {}


_held = _Held()


def take(name: str, size: int) -> memoryview:
    """`size` bytes that hold anything, this thread's until it takes `name` again."""
    buffer = _held.buffers.get(name)
    if buffer is None or len(buffer) < size:
        buffer = _held.buffers[name] = mmap.mmap(-1, max(1, -(-size // _STEP)) * _STEP)
        # A huge page is one fault instead of 512.
        with contextlib.suppress(OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(buffer)[:size]
