"""Leaves at work: building one from extents, finding bytes in one. Called by write/ and read/."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from ijfs_engine._native.extent_columns import Assembly, Columns
from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.frames import ID_SIZE, FrameKind
from ijfs_engine.format.place import NO_PLACE
from ijfs_engine.format.records import ZERO_RUN, Leaf, ObjectId, encode_leaf

ExtentSource: TypeAlias = tuple[int, int, Columns, int]
"""(page, pages, columns, page in them): `pages` pages from `page` on are in these columns."""


class Slice(NamedTuple):
    """`length` bytes from `offset` of the plain bytes of chunk `id`; zeros where `id` is None."""

    id: bytes | None
    offset: int
    length: int


def leaf_from(assembly: Assembly) -> Leaf:
    """The leaf whose bytes are what was put together."""
    ids, *columns = assembly.leaf()
    index, offset, length = (array("I", bytes(column)) for column in columns)
    return Leaf(ids, index, offset, length)


@lru_cache(maxsize=64)
def zero_leaf(length: int, crypt: Crypt) -> ObjectId:
    """The id of the leaf that is `length` zeros."""
    zeros = Assembly()
    zeros.zeros(length)
    return crypt.object_id(FrameKind.LEAF, encode_leaf(leaf_from(zeros)))


class LeafMap:
    """A leaf, with the position of each extent: `slices` finds any range in O(log extents)."""

    __slots__ = ("columns", "leaf", "size", "starts")

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        starts = list(accumulate(leaf.length, initial=0))
        self.size = starts.pop()
        self.starts = starts
        self.columns = Columns(leaf.ids, leaf.index, leaf.offset, leaf.length)

    def rows(self) -> Iterator[bytes]:
        """The index's rows of the chunks, as far as they were looked up and there are any."""
        rows = self.columns.rows or b""
        found = (rows[at : at + len(NO_PLACE)] for at in range(0, len(rows), len(NO_PLACE)))
        return (row for row in found if row != NO_PLACE)

    def piece(self, offset: int, length: int) -> Slice | None:
        """What bytes [offset, offset + length) are, if one extent has them all; the range lies inside the leaf."""
        leaf = self.leaf
        at = bisect_right(self.starts, offset) - 1
        inside = offset - self.starts[at]
        if inside + length > leaf.length[at]:
            return None
        number = leaf.index[at]
        if number == ZERO_RUN:
            return Slice(None, 0, length)
        return Slice(leaf.ids[number * ID_SIZE : (number + 1) * ID_SIZE], leaf.offset[at] + inside, length)

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """What bytes [offset, offset + length) are made of, in order; the range lies inside the leaf."""
        leaf = self.leaf
        at = bisect_right(self.starts, offset) - 1
        inside = offset - self.starts[at] if length else 0
        while length > 0:
            step = min(length, leaf.length[at] - inside)
            number = leaf.index[at]
            if number == ZERO_RUN:
                yield Slice(None, 0, step)
            else:
                yield Slice(leaf.ids[number * ID_SIZE : (number + 1) * ID_SIZE], leaf.offset[at] + inside, step)
            length, at, inside = length - step, at + 1, 0
