"""Large buffers that a thread uses again: to map, zero and fault in megabytes takes as long as to fill them."""

from __future__ import annotations

import threading


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[str, bytearray] = {}


_held = _Held()


def take(name: str, size: int) -> memoryview:
    """`size` bytes that hold anything, this thread's until it takes `name` again."""
    buffer = _held.buffers.get(name)
    if buffer is None or len(buffer) < size:
        buffer = _held.buffers[name] = bytearray(size)
    return memoryview(buffer)[:size]
