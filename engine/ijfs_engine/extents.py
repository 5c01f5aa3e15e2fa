"""Leaves at work: building one from extents, finding bytes in one. Called by ingest (write) and reader (read)."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from .frames import ID_SIZE
from .records import ZERO_RUN, Leaf


class Slice(NamedTuple):
    """`length` bytes from `offset` of the plain bytes of chunk `id`; zeros where `id` is None."""

    id: bytes | None
    offset: int
    length: int


def leaf_of(slices: Iterable[Slice]) -> Leaf:
    """The leaf whose bytes are these slices in order; slices that continue each other become one extent."""
    numbers: dict[bytes, int] = {}
    index, offsets, lengths = array("I"), array("I"), array("I")
    last, end = -1, 0
    for ident, offset, length in slices:
        number = ZERO_RUN if ident is None else numbers.setdefault(ident, len(numbers))
        if number == last and (number == ZERO_RUN or offset == end):
            lengths[-1] += length
        elif length:
            index.append(number)
            offsets.append(0 if ident is None else offset)
            lengths.append(length)
            last = number
        end = offset + length
    return Leaf(b"".join(numbers), index, offsets, lengths)


class LeafMap:
    """A leaf, with the position of each extent: `slices` finds any range in O(log extents)."""

    __slots__ = ("leaf", "size", "starts")

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        starts = list(accumulate(leaf.length, initial=0))
        self.size = starts.pop()
        self.starts = starts

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
