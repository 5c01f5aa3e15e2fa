"""Record locks (fcntl) that a program has again after a restore, which CRIU alone would lose where it maps their file.

record_locks.c, which CRIU loads, sets them once more before the program runs; it says why, and how. Called by
command.py, for snapshots that have such locks.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from ijfs.live.criu.image_format import RecordLock, parse_record_locks

VARIABLE = "IJFS_RECORD_LOCKS"
"""Names the file, for record_locks.c."""

_IMAGE = "filelocks.img"
_LOCK = struct.Struct("@6l")
_NOT_TRIED = -1


def locks_in(images: Path) -> list[RecordLock]:
    """The record locks of a program. CorruptError."""
    path = images / _IMAGE
    return list(parse_record_locks(_IMAGE, path.read_bytes())) if path.exists() else []


def write(path: Path, locks: Sequence[RecordLock]) -> None:
    """Write down what is to be set."""
    path.write_bytes(b"".join(_LOCK.pack(*lock, _NOT_TRIED) for lock in locks))


def not_set(path: Path) -> list[str]:
    """A sentence of each lock that the program may not have: what it protects by it is not protected."""
    return [
        f"process {process} of the program may have lost its lock on descriptor {descriptor}: {_why(result)}"
        for process, descriptor, _, _, _, result in _LOCK.iter_unpack(path.read_bytes())
        if result
    ]


def _why(result: int) -> str:
    return os.strerror(result) if result > 0 else "CRIU here loads no library"
