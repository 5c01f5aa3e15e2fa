"""Lists that end: a few kB of a stranger's trees can hold more paths than any memory does. Used by `ls` and `diff`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

MOST = 1_000_000
"""Entries that are listed: 300 MB of memory."""
MOST_TEXT = 256 << 20
"""Characters of their paths together."""


def bounded(items: Iterator[T], path: Callable[[T], str]) -> tuple[list[T], bool]:
    """The items, and whether there are more than fit."""
    found: list[T] = []
    room = MOST_TEXT
    for item in items:
        if len(found) == MOST or room < 0:
            return found, True
        found.append(item)
        room -= len(path(item))
    return found, False
