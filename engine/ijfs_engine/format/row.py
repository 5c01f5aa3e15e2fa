"""Rows of fixed size, parsed so that a row of another size is damage and no accident of the program.

The index's tables (`storage/index.py`) and places (`place.py`) are made of them.
"""

from __future__ import annotations

import struct
from typing import Any

from ijfs_engine.errors import CorruptError


class RowStruct(struct.Struct):
    """A `struct.Struct` whose `unpack` raises CorruptError."""

    def unpack(self, data: Any, /) -> tuple[Any, ...]:
        """The fields; CorruptError for a row of another size."""
        try:
            return super().unpack(data)
        except struct.error as error:
            raise misshapen() from error


def misshapen() -> CorruptError:
    """The error for a row that cannot have been written so."""
    return CorruptError(
        "a row of the index has a shape that it cannot have", hint="`ijfs fsck --repair` rebuilds the index"
    )
