"""Where a frame is: the row that the index keeps for every chunk, object and sidecar.

Sessions and rebuilds write rows, the store and fsck read them, and the compiled loops of a large read parse them again
(_native/read_plan.pyx). docs/format.md draws one.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from ijfs_engine.format.frames import ALIGN
from ijfs_engine.format.row import RowStruct

_PLACE: Final = RowStruct("<IIIIBB")
_WHERE: Final = struct.Struct("<II")
NO_PLACE: Final = bytes(_PLACE.size)
"""Stands for no row where rows are end to end."""


class Place(NamedTuple):
    """Where a frame is: pack number, byte offset, whole frame's bytes without padding, plain bytes, tag, depth."""

    pack: int
    offset: int
    span: int
    plain: int
    tag: int
    depth: int

    def encode(self) -> bytes:
        """18 bytes; the offset is kept in units of 8."""
        return _PLACE.pack(self.pack, self.offset // ALIGN, self.span, self.plain, self.tag, self.depth)

    @classmethod
    def decode(cls, row: bytes) -> Place:
        """The inverse. CorruptError."""
        pack, units, span, plain, tag, depth = _PLACE.unpack(row)
        return cls(pack, units * ALIGN, span, plain, tag, depth)

    @property
    def on_disk(self) -> int:
        """Bytes in the pack, padding counted."""
        return self.span + -self.span % ALIGN


def encode_where(pack: int, offset: int) -> bytes:
    """The first 8 bytes of a Place's row."""
    return _WHERE.pack(pack, offset // ALIGN)
