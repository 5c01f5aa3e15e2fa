"""A file that only takes up room, so that a full disk is no dead end: it goes when a change of names or gc needs room.

`rm`, `prune` and gc write before they can free anything: rows of the index, a line of the journal. `Index.write` gives
the reserve up when the disk has no room for those, and saves and gc take it again when there is room. A save's own
bytes never come out of it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.storage import disk

_LEAST: Final = 2 << 20
_MOST: Final = 256 << 20
_SHARE: Final = 8
"""It takes at most this part of what is free: a small disk is there for what people keep on it."""


class Reserve:
    """One repository's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self, index_bytes: int) -> None:
        """Take up as much as gc may need, half of the index, unless that would be much of what is free.

        gc notes 50 bytes for each dead chunk, and a chunk has 90 or more in the index. Where it fails there is none.
        """
        want = min(max(_LEAST, index_bytes // 2), _MOST)
        with suppress(OSError, CorruptError):
            have = self.size()
            space = os.statvfs(self.path.parent)
            if have < want // 2 and (want - have) * _SHARE <= space.f_bavail * space.f_frsize:
                self._allocate(want)

    def give_up(self) -> bool:
        """Let the room go; whether there was any. OSError."""
        if not self.size():
            return False
        disk.unlink(self.path)
        return True

    def size(self) -> int:
        """Bytes it takes up now. OSError."""
        try:
            return self.path.lstat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def _allocate(self, size: int) -> None:
        fd = disk.open_plain(self.path, os.O_RDWR | os.O_CREAT)
        try:
            disk.allocate(fd, self.path, size)
        except OSError:
            # What it got before the disk was full after all.
            disk.unlink(self.path)
            raise
        finally:
            os.close(fd)
