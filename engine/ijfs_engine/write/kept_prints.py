"""Whole fingerprints of the pages of a last save, kept in memory by who makes the next one.

What is stored of fingerprints is little (fingerprints.py): where a group of pages has changed, the parent's bytes are
read to know which of its pages are still the same. A process that saves the same program again and again has seen all
of those pages before. It keeps 16 bytes of each, 4 MiB for a GiB, and its next save reads the parent only under pages
that did change.

They are found by the id of the leaf that they were stored as, which is a hash of its bytes: what is found is right,
whatever was saved, removed or gone back to since. That a page with the parent's fingerprint is the parent's page is
docs/format.md's proof ("Page fingerprints"), which needs no groups. page_writer.py puts them in, parent_pages.py asks.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Final, NamedTuple

from blake3 import blake3

from ijfs_engine.format.page_layout import LEAF_PAGES
from ijfs_engine.format.records import ObjectId
from ijfs_engine.util import buffers

_SLOT: Final = 16 * LEAF_PAGES
"""Bytes that a leaf has at most. Those of a smaller one are never touched, and take no memory."""
_SLAB: Final = 64
"""Slots in a piece of memory."""
# linux/mman.h; Python 3.11 does not name it.
_MADV_FREE: Final = 8


class _Place(NamedTuple):
    slot: int
    size: int
    digest: bytes


class KeptPrints:
    """The fingerprints of the last snapshot that was made with this. One for each program that is saved; its saves
    follow one another. Safe to use from the threads of a save.

    Between saves the kernel may take the memory. What it took reads as zeros, which would mean pages of zeros: a digest
    of each leaf's fingerprints, which it cannot take, tells.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = b""
        self._slabs: list[mmap.mmap] = []
        self._free: list[int] = []
        self._places: dict[ObjectId, _Place] = {}
        self._seen: set[ObjectId] = set()

    def begin(self, key: bytes) -> None:
        """A save begins, under this key: that of its repository. What was kept under another says nothing."""
        if key != self._key:
            self.forget()
            self._key = key
        self._seen = set()

    def settle(self) -> None:
        """The save is done: what was put, or put again, is what is kept. From here on the kernel may take it."""
        for leaf in self._places.keys() - self._seen:
            self._free.append(self._places.pop(leaf).slot)
        for slab in self._slabs:
            with contextlib.suppress(OSError):
                slab.madvise(_MADV_FREE)

    def forget(self) -> None:
        """Keep nothing."""
        self._places, self._free, self._slabs = {}, [], []

    def get(self, leaf: ObjectId) -> bytes | None:
        """16 bytes for each of a leaf's pages, in order; None where they are not known, or not any more."""
        place = self._places.get(leaf)
        if place is None:
            return None
        slab, start = self._at(place.slot)
        prints = slab[start : start + place.size]
        return prints if _digest(prints) == place.digest else None

    def put(self, leaf: ObjectId, prints: bytes) -> None:
        """Keep those of a leaf's pages."""
        place = _Place(0, len(prints), _digest(prints))
        with self._lock:
            self._seen.add(leaf)
            old = self._places.get(leaf)
            place = place._replace(slot=self._free_slot() if old is None else old.slot)
            slab, start = self._at(place.slot)
            slab[start : start + place.size] = prints
            self._places[leaf] = place

    def put_again(self, leaf: ObjectId) -> None:
        """Keep those of a leaf that `get` has just given."""
        with self._lock:
            self._seen.add(leaf)

    def _at(self, slot: int) -> tuple[mmap.mmap, int]:
        return self._slabs[slot // _SLAB], slot % _SLAB * _SLOT

    def _free_slot(self) -> int:
        if not self._free:
            slab = buffers.private(_SLAB * _SLOT)
            with contextlib.suppress(OSError):
                # A child would share the pages, and each next write here would copy one.
                slab.madvise(mmap.MADV_DONTFORK)
            self._free = [len(self._slabs) * _SLAB + number for number in reversed(range(_SLAB))]
            self._slabs.append(slab)
        return self._free.pop()


def _digest(prints: bytes) -> bytes:
    return blake3(prints).digest(length=16)
