"""Where fresh bytes are cut into chunks: the word gear's sizes. Called by regions.py.

The loop is _native/chunk_cuts.pyx's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ijfs_engine._native import chunk_cuts
from ijfs_engine.format.frames import MAX_CHUNK

# 16-64-256 KiB: chunks below 16 KiB cost more index than they save, those above 256 KiB make every read of one page
# decode too much. A byte-level gear was measured beside this one: of two related kernels, chunked without guidance, it
# left 142.1 MB of different chunks (cuts rounded to 8 bytes or not), this one 141.8, at 7.3 GB/s a core against 1.8.
MIN_CHUNK: Final = 16 << 10
AVERAGE_CHUNK: Final = 64 << 10
# Behind the minimum a cut is expected after 6144 words: 48 KiB, so 64 KiB in all.
THRESHOLD: Final = (1 << 64) - (1 << 64) // ((AVERAGE_CHUNK - MIN_CHUNK) // 8)


def cut(data: memoryview, key: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of the chunks of one region, in order; none for no bytes. `key` is `Crypt.cut_key`."""
    start = 0
    for end in chunk_cuts.gear_cuts(data, MIN_CHUNK, MAX_CHUNK, THRESHOLD, key):
        yield start, end
        start = end
