"""What all paths below a tree of a snapshot add up to. Called by `ijfs show`, `export` and `cp`.

Each tree is read once, however many paths lead to it: a few kB of trees can hold more paths than anyone can count.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ijfs_engine.errors import CorruptError, StorageError

if TYPE_CHECKING:
    from ijfs_engine import Entry, Reader


class Totals(NamedTuple):
    """Paths (directories too), files, and the files' bytes."""

    paths: int
    files: int
    size: int

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(self.paths + other.paths, self.files + other.files, self.size + other.size)


def tree_of(directory: Entry) -> bytes:
    """The tree of a directory's entry; CorruptError where it names none."""
    if directory.content is None:
        raise CorruptError(f"the directory {os.fsdecode(directory.name)!r} has no tree")
    return directory.content


def totals(reader: Reader, top: bytes) -> Totals:
    """Of all below a tree. CorruptError."""
    found: dict[bytes, Totals] = {}
    known: dict[bytes, tuple[Totals, list[bytes]]] = {}
    stack = [top]
    while stack:
        tree = stack[-1]
        if tree not in found and tree not in known:
            known[tree] = _own(reader, tree)
            stack += [child for child in known[tree][1] if child not in found]
            continue
        stack.pop()
        if tree not in found:
            total, below = known.pop(tree)
            for child in below:
                total = total.plus(found[child])
            found[tree] = total
    return found[top]


def check_room(reader: Reader, tree: bytes, directory: int | Path) -> None:
    """Refuse more paths than the disk of a directory can hold: a few kB of a stranger's trees may name billions.
    StorageError, CorruptError. A filesystem that does not say how many it can hold takes what there is."""
    disk = os.statvfs(directory)
    paths = totals(reader, tree).paths
    if disk.f_files and paths > disk.f_favail:
        raise StorageError(
            f"there are {paths:,} files and directories, and the disk has room for {disk.f_favail:,} more",
            hint="`ijfs ls` shows what is in it; a directory in it can be taken by itself",
        )


def _own(reader: Reader, tree: bytes) -> tuple[Totals, list[bytes]]:
    """What stands in a tree itself, and the trees below it."""
    entries = reader.tree(tree).entries
    sizes = [entry.size for entry in entries if entry.kind == "f"]
    return Totals(len(entries), len(sizes), sum(sizes)), [tree_of(entry) for entry in entries if entry.kind == "d"]
