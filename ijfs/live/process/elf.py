"""The build id of a program or library, as CRIU compares it before it maps one again; used by machine/fit.py."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

_HEAD = struct.Struct("<4sBB")  # magic, class, byte order
_PROGRAM_HEADERS = struct.Struct("<32xQ14xHH")  # of a 64-bit header: where, size of one, how many
_PROGRAM_HEADER = struct.Struct("<II Q16xQ16x")  # kind, flags, offset, bytes in the file
_NOTE = struct.Struct("<III")  # bytes of its name, of what it holds; kind
_NOTES, _BUILD_ID = 4, 3  # PT_NOTE, NT_GNU_BUILD_ID
_READ = 1 << 20


def build_id(path: Path) -> bytes:
    """The build id; empty for what has none or is no 64-bit ELF file, and where it cannot be read."""
    with contextlib.suppress(OSError, struct.error), path.open("rb") as file:
        data = file.read(_READ)
        if _HEAD.unpack_from(data) != (b"\x7fELF", 2, 1):
            return b""
        return next((what for kind, name, what in _notes(data) if (kind, name) == (_BUILD_ID, b"GNU\0")), b"")
    return b""


def _notes(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(kind, name, what it holds) of every note in the beginning of a file."""
    at, size, count = _PROGRAM_HEADERS.unpack_from(data)
    for number in range(count):
        kind, _, offset, length = _PROGRAM_HEADER.unpack_from(data, at + number * size)
        end = min(offset + length, len(data))
        while kind == _NOTES and offset + _NOTE.size <= end:
            name_bytes, bytes_held, note = _NOTE.unpack_from(data, offset)
            name = offset + _NOTE.size
            held = name + -(-name_bytes // 4) * 4
            yield note, data[name : name + name_bytes], data[held : held + bytes_held]
            offset = held + -(-bytes_held // 4) * 4
