"""What chattr(1) sets on a file, which no snapshot keeps: seen at an import, so that it can be told."""

from __future__ import annotations

import contextlib
import fcntl
import struct
from typing import Final

# FS_IOC_GETFLAGS of linux/fs.h: _IOR('f', 1, long).
_GETFLAGS: Final = 0x80086601 if struct.calcsize("l") == 8 else 0x80046601
# The flags that a user gives; the others are the filesystem's own business. The letters are those of lsattr.
_LETTERS: Final = {
    0x00000002: "u",
    0x00000004: "c",
    0x00000008: "S",
    0x00000010: "i",
    0x00000020: "a",
    0x00000040: "d",
    0x00000080: "A",
    0x00004000: "j",
    0x00010000: "D",
    0x00020000: "T",
    0x00800000: "C",
    0x02000000: "x",
    0x20000000: "P",
    0x40000000: "F",
}


def of(fd: int) -> str:
    """The letters of an open file's or directory's flags; none where the filesystem has no such thing."""
    value = bytearray(8)
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _GETFLAGS, value)
    flags = int.from_bytes(value[:4], "little")
    return "".join(letter for bit, letter in _LETTERS.items() if flags & bit)
