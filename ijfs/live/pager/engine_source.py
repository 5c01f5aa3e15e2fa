"""CRIU's images as the storage engine keeps them: the `Files` of a snapshot, read without a mount in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ijfs.live.pager.source import pids_of
from ijfs_engine import ObjectId, Repository
from ijfs_engine.reader import StoredFile

_IMAGES: Final = "images"
_CACHE_BYTES: Final = 32 << 20
"""Decoded chunks that straddle two blocks, or that a fault had decoded, are found here: a few blocks are enough."""


class EngineFiles:
    """The image directory of one snapshot. Pins it, so that no gc takes what a running program still needs."""

    def __init__(self, repository: Path, snapshot: ObjectId, *, delay_s: float = 0.0) -> None:
        """NoRepositoryError, UnknownFormatError, UnknownNameError, CorruptError."""
        self._repository = Repository.open(repository)
        self._pin = self._repository.pin(snapshot, "pager")
        self._reader = self._repository.reader(cache_bytes=_CACHE_BYTES, delay_s=delay_s)
        self._root = self._repository.snapshot(snapshot).root

    def open(self, name: str) -> StoredFile:
        return self._reader.open(self._reader.lookup(self._root, f"{_IMAGES}/{name}"))

    def zeros(self, name: str) -> Iterator[tuple[int, int]]:
        return ((extent.offset, extent.length) for extent in self.open(name).extents() if extent.zero)

    def pids(self) -> list[int]:
        directory = self._reader.lookup(self._root, _IMAGES).content
        if directory is None:
            return []
        return pids_of(entry.name.decode(errors="replace") for entry in self._reader.tree(directory).entries)
