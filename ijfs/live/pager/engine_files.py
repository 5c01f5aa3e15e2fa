"""CRIU's images as the storage engine keeps them: the `Files` of a snapshot, read without a mount in between."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ijfs.live.pager import working_set
from ijfs.live.pager.image_files import pids_of
from ijfs.live.pager.working_set import Touched
from ijfs_engine import ObjectId, Repository, StoredFile

_IMAGES: Final = "images"
_CACHE_BYTES: Final = 32 << 20
"""Decoded chunks that straddle two blocks, or that a fault had decoded, are found here: a few blocks are enough."""
_FEW_BYTES: Final = 2 << 20
"""Where only faults are answered, for as long as the program lives."""


class EngineFiles:
    """The image directory of one snapshot. Pins it, so that no gc takes what a running program still needs."""

    def __init__(
        self, repository: Path, snapshot: ObjectId, *, on_demand: bool = False, delay_s: float | None = None
    ) -> None:
        """NoRepositoryError, UnknownFormatError, UnknownNameError, CorruptError."""
        self._repository = Repository.open(repository)
        self._pin = self._repository.pin(snapshot, "pager")
        self._reader = self._repository.reader(cache_bytes=_FEW_BYTES if on_demand else _CACHE_BYTES, delay_s=delay_s)
        self._root = self._repository.snapshot(snapshot).root
        self._snapshot = snapshot
        self._known: bytes | None = None

    def open(self, name: str) -> StoredFile:
        return self._reader.open(self._reader.lookup(self._root, f"{_IMAGES}/{name}"))

    def working_set(self) -> list[Touched]:
        """What a restore of this snapshot, or of its nearest ancestor that has one, touched first."""
        if self._reader.delay_s:
            time.sleep(self._reader.delay_s)
        self._known = self._repository.working_set(self._snapshot, inherited=False)
        return working_set.decode(self._known or self._repository.working_set(self._snapshot) or b"")

    def keep_working_set(self, touched: Iterable[Touched]) -> None:
        """Keep it with the snapshot, unless a sibling has done so meanwhile."""
        if self._repository.working_set(self._snapshot, inherited=False) == self._known:
            self._repository.put_working_set(self._snapshot, working_set.encode(touched))

    def pids(self) -> list[int]:
        directory = self._reader.lookup(self._root, _IMAGES).content
        if directory is None:
            return []
        return pids_of(entry.name.decode(errors="replace") for entry in self._reader.tree(directory).entries)
