"""A directory whose contents ext4 makes in a place where nothing was made or removed of late. For sandboxes.

ext4 makes what is in a directory near to it, and passes over each inode number there that was given back in the last
minutes. After a copy of a program with many files had ended, the next one waited for that: 10,000 files took 4.6 s and
not 0.2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_TOPDIR_FL of <linux/fs.h>: `chattr +T`.
_LONG = struct.calcsize("l")
_GET = 0x80006601 | _LONG << 16
_SET = 0x40006602 | _LONG << 16
_TOP_OF_HIERARCHIES = 0x00020000


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, unless it is there. Below a directory with the flag ext4 chooses the place
    by the name with which a new one is made: it is made under one that none had before. OSError."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _spread(path.parent)
    first = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    first.mkdir()
    first.rename(path)


def _spread(directory: Path) -> None:
    """What is made in it from now on is not made near to it; of no effect on filesystems that know no such flag."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = bytearray(8)
            fcntl.ioctl(fd, _GET, flags)
            value = int.from_bytes(flags[:4], "little") | _TOP_OF_HIERARCHIES
            fcntl.ioctl(fd, _SET, struct.pack("<Q", value))
        finally:
            os.close(fd)
