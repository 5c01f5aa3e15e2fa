"""The memory that a keeper's saves write into: bounded, faulted in before a freeze, kept for the next one for a while.

To fault in a GiB that the machine has not touched before takes half a second (0.4 to 1.3 s seen); one that was kept
takes no time. So the arena that a save releases stays with the keeper for a minute, marked as free for the kernel to
take when memory gets short (MADV_FREE). A loop that saves every cell finds it warm, and an idle keeper is small again.
One arena is kept, the largest. Acquired by freeze.py, released by keeper/save.py.

How much it may be: what `$IJFS_SAVE_MEMORY` says, else most of what the machine has free at that moment. An image that
is larger goes to disk for the rest, and the save says so.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from ijfs.live.model.sizes import parse_size
from ijfs.live.process import memory
from ijfs_engine import Arena

# Of what is available, so much at most: an image is stored by compressors that need memory too.
SHARE = 0.8

# How long memory is kept that nobody uses. Saves after cells and saves in a loop follow one another faster.
KEPT_S = 60.0

# Address space for a quarter more than was asked for: a program that grows a little does not have to begin cold.
GROWTH = 4

_VARIABLE = "IJFS_SAVE_MEMORY"


class ArenaPool:
    """The arenas of one keeper. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Arena | None = None
        self._lent: weakref.WeakSet[Arena] = weakref.WeakSet()
        self.uses = 0
        """How often an arena was acquired: who finds it unchanged after `KEPT_S` calls `forget`."""

    def acquire(self, expected: int, most: int, spill: Path) -> Arena:
        """An arena for an image of about `expected` bytes and at most `most`, faulted in; what the budget has no room
        for lies in a file in `spill`. It comes back by `release`, or is gone with its last user. StorageError."""
        with self._lock:
            self.uses += 1
            arena, self._kept = self._kept, None
            if arena is None or arena.capacity < most:
                arena = Arena(most + most // GROWTH)
            arena.reset(limit=budget(sum(other.used for other in self._lent)), spill=spill)
            self._lent.add(arena)
        arena.prefault(expected)
        return arena

    def release(self, arena: Arena) -> None:
        """Nobody uses what is in it any more."""
        arena.rest()
        with self._lock:
            self._lent.discard(arena)
            if self._kept is None or self._kept.capacity < arena.capacity:
                self._kept = arena

    def forget(self) -> None:
        """Give what is kept to the machine."""
        with self._lock:
            self._kept = None


def budget(lent: int = 0) -> int:
    """Bytes of memory that the next save may take, while the saves before it use `lent` bytes. IjfsError."""
    said = os.environ.get(_VARIABLE, "")
    return max(0, parse_size(_VARIABLE, said) - lent) if said else int(SHARE * memory.available())
