"""The pages of the index, read by own code: every one is looked at before LMDB may trust it.

LMDB maps its file and believes what stands there: a damaged page ends the process (SIGBUS, abort), and a damaged list
of free pages has the next save write over what is in use, without a word. Here pages are read by `pread`, every offset
is held against the page and every page number against the file: nothing worse than a `PageError` can come of them.

fsck walks the whole file (`maintenance/index_check.py`), a rebuild takes what can still be read, and every open has
compiled code look at all pages (`look_through`). The offsets are LMDB 0.9's (mdb.c: `MDB_page`, `MDB_node`, `MDB_db`),
as in index_file.py; tests hold them against LMDB's own numbers.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ijfs_engine.errors import is_refusal
from ijfs_engine.storage.disk import read_plain
from ijfs_engine.storage.index_file import Meta, Tree, doubt, newest_meta

if TYPE_CHECKING:
    from ijfs_engine._native.index_walk import IndexWalk

_PAGE: Final = struct.Struct("<Q2xHHH")
"""Number of the page, flags, end of the node pointers, begin of the nodes."""
PAGE_HEAD: Final = 16
_RUN: Final = struct.Struct("<I")
"""In place of the last two on the first page of a long value: how many pages it takes."""
_NODE: Final = struct.Struct("<HHHH")
"""Size of the value (low, high) or a branch's page (low, middle, high), flags before the size of the key."""
_NODE_HEAD: Final = 8
_NUMBER: Final = struct.Struct("<Q")
BRANCH, LEAF, LONG = 1, 2, 4
_ELSEWHERE: Final = 1
"""Node flag: the value stands on pages of its own."""
_TABLE: Final = 2
"""Node flag: the value is the root of a table."""
_DEEPEST: Final = 32


class PageError(Exception):
    """What is wrong with a page."""


class Row(NamedTuple):
    """A row of a tree; `flags` are the node's."""

    key: bytes
    value: bytes
    flags: int


class Branch(NamedTuple):
    """A page below another one, and the keys between which all of its keys lie."""

    page: int
    low: bytes | None
    high: bytes | None


class Pages:
    """The pages of one state of the index: an open file and the meta page that names the state's roots."""

    def __init__(self, fd: int, meta: Meta) -> None:
        self._fd = fd
        self.meta = meta
        self._size = meta.page_size
        self._count = min(meta.last_page + 1, os.fstat(fd).st_size // self._size)
        self._used = bytearray(self._count)
        self.faults: list[str] = []
        """What was wrong on the way, in sentences."""

    def rows(self, tree: Tree, name: str, *, numbers: bool = False) -> Iterator[Row]:
        """All rows of a tree in key order, around what is damaged: that is added to `faults`. `numbers`: its keys are
        LMDB's own, which it compares as numbers."""
        counts = {BRANCH: 0, LEAF: 0, LONG: 0}
        entries = 0
        stack = [(Branch(tree.root, None, None), 1)] if tree.root is not None else []
        while stack:
            branch, depth = stack.pop()
            try:
                kind, nodes = self._load(branch, depth, tree.depth, numbers)
            except PageError as fault:
                self.faults.append(f"{name}: {fault}")
                continue
            counts[kind] += 1
            if kind == BRANCH:
                stack += [(child, depth + 1) for child in reversed(_children(nodes, branch))]
                continue
            for key, value, flags in nodes:
                entries += 1
                try:
                    whole = self._long(value, counts) if flags & _ELSEWHERE else value
                except PageError as fault:
                    self.faults.append(f"{name}: {fault}")
                    continue
                yield Row(key, whole, flags)
        said = (tree.branch_pages, tree.leaf_pages, tree.long_pages, tree.entries)
        met = (counts[BRANCH], counts[LEAF], counts[LONG], entries)
        if said != met:
            self.faults.append(f"{name}: has other numbers of pages and rows, {met}, than it says, {said}")

    def read_through(self, tree: Tree, name: str) -> None:
        """Look at all rows of a tree for the faults on the way."""
        for _ in self.rows(tree, name):
            pass

    def tables(self) -> dict[bytes, Tree]:
        """The tables by name."""
        found: dict[bytes, Tree] = {}
        for key, value, flags in self.rows(self.meta.main, "the list of tables"):
            tree = Tree.parse(value) if flags == _TABLE else None
            if tree is None:
                self.faults.append(f"the list of tables: {key!r} is none")
            else:
                found[key] = tree
        return found

    def check_free(self) -> None:
        """Hold the list of free pages against those that were met so far: to be called after all tables."""
        lists = list(self.rows(self.meta.free, "the list of free pages", numbers=True))
        for key, value, _ in lists:
            try:
                self._free(key, value)
            except PageError as fault:
                self.faults.append(f"the list of free pages: {fault}")

    def _free(self, key: bytes, value: bytes) -> None:
        if len(key) != 8 or len(value) < 8 or not 0 < _NUMBER.unpack(key)[0] <= self.meta.transaction:
            raise PageError("has a row of a shape that it cannot have")
        (count,) = _NUMBER.unpack_from(value)
        if 8 * count + 8 > len(value):
            raise PageError(f"counts {count} pages where there are not so many")
        before = 1 << 64
        for (number,) in _NUMBER.iter_unpack(value[8 : 8 + 8 * count]):
            if not 2 <= number <= self.meta.last_page or number >= before:
                raise PageError(f"names page {number}, which cannot be free there")
            before = number
            if number < self._count:
                self._take(number)

    def _take(self, number: int) -> None:
        if not 2 <= number < self._count:
            raise PageError(f"page {number} is not in the file")
        if self._used[number]:
            raise PageError(f"page {number} is in use twice")
        self._used[number] = 1

    def _load(self, branch: Branch, depth: int, deepest: int, numbers: bool) -> tuple[int, list[Row]]:
        """The kind of a page, and its nodes: a branch's value is the number of the page below."""
        number = branch.page
        self._take(number)
        page = self._read(number, 1)
        own, flags, lower, upper = _PAGE.unpack_from(page)
        if own != number or flags not in (BRANCH, LEAF):
            raise PageError(f"page {number} is not what stands there")
        if (flags == LEAF) != (depth == deepest) or depth > _DEEPEST:
            raise PageError(f"page {number} is at a depth where it may not be")
        if not PAGE_HEAD < lower <= upper <= self._size or lower % 2:
            raise PageError(f"page {number} has no room as it says")
        nodes = list(_nodes(page, flags, lower, upper))
        _check_order(nodes, branch, flags, numbers)
        return flags, nodes

    def _long(self, value: bytes, counts: dict[int, int]) -> bytes:
        """A value that stands on pages of its own; `value` is its size and its first page."""
        size, first = int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little")
        pages = (PAGE_HEAD - 1 + size) // self._size + 1
        if not 2 <= first <= self._count - pages:
            raise PageError(f"page {first} is not in the file")
        for number in range(first, first + pages):
            self._take(number)
        counts[LONG] += pages
        data = self._read(first, pages)
        own, flags, _, _ = _PAGE.unpack_from(data)
        if own != first or flags != LONG or _RUN.unpack_from(data, 12)[0] != pages:
            raise PageError(f"page {first} is not what stands there")
        return data[PAGE_HEAD : PAGE_HEAD + size]

    def _read(self, number: int, pages: int) -> bytes:
        size = pages * self._size
        try:
            data = os.pread(self._fd, size, number * self._size)
        except OSError as error:
            if is_refusal(error):
                raise
            raise PageError(f"page {number} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise PageError(f"page {number} is not in the file")
        return data


def _nodes(page: bytes, flags: int, lower: int, upper: int) -> Iterator[Row]:
    """The nodes of a page in the order of their keys. PageError."""
    unpack = _NODE.unpack_from
    end = len(page)
    taken = 0
    for at in struct.unpack_from(f"<{(lower - PAGE_HEAD) // 2}H", page, PAGE_HEAD):
        if not upper <= at <= end - _NODE_HEAD:
            raise PageError("a node is not on its page")
        low, high, node_flags, key_size = unpack(page, at)
        start = at + _NODE_HEAD + key_size
        if flags == BRANCH:
            value, stop, node_flags = (low | high << 16 | node_flags << 32).to_bytes(8, "little"), start, 0
        else:
            size = low | high << 16
            stop = start + (8 if node_flags & _ELSEWHERE else size)
            value = page[start:stop]
            if node_flags & _ELSEWHERE:
                value = size.to_bytes(4, "little") + value
            if node_flags not in (0, _ELSEWHERE, _TABLE):
                raise PageError("a node has flags that none may have")
        if stop > end:
            raise PageError("a node is larger than its page")
        taken += stop - at + ((stop - at) & 1)
        yield Row(page[at + _NODE_HEAD : start], value, node_flags)
    if taken != end - upper:
        raise PageError("the nodes of a page do not fill what it says they do")


def _check_order(nodes: list[Row], branch: Branch, flags: int, numbers: bool) -> None:
    """Keys rise, and stay between those that led here. The first key of a branch stands for all that are lower."""
    keys = [node.key for node in (nodes[1:] if flags == BRANCH else nodes)]
    if numbers:
        if any(len(key) != 8 for key in keys):
            raise PageError(f"page {branch.page} has keys that are no numbers")
        keys = [key[::-1] for key in keys]
    for key, following in itertools.pairwise(keys):
        if not key < following:
            raise PageError(f"page {branch.page} has its keys out of order")
    low, high = (key[::-1] if key is not None and numbers else key for key in (branch.low, branch.high))
    if keys and ((low is not None and keys[0] < low) or (high is not None and keys[-1] >= high)):
        raise PageError(f"page {branch.page} has keys that do not belong there")


def _children(nodes: list[Row], branch: Branch) -> list[Branch]:
    """The pages below a branch."""
    lows = [branch.low, *(node.key for node in nodes[1:])]
    highs = [*lows[1:], branch.high]
    numbers = [int.from_bytes(node.value, "little") for node in nodes]
    return [Branch(*fields) for fields in zip(numbers, lows, highs, strict=True)]


_LEAST, _MOST = 4096, 1 << 16
"""Bytes of a page."""
_SIZE_AT: Final = 40
"""Where a meta page has them."""
_TRIES: Final = 5
_PAUSE_S: Final = 0.01


def read_head(fd: int) -> bytes:
    """The beginning of an index with both meta pages, and no more: the next page may be in a bad sector. OSError."""
    head = os.pread(fd, 2 * _LEAST, 0)
    size = int.from_bytes(head[_SIZE_AT : _SIZE_AT + 4], "little")
    return os.pread(fd, size + _LEAST, 0) if _LEAST < size <= _MOST else head


def look_over(file: Path, names: Collection[bytes]) -> str | None:
    """What is wrong with an index as far as its meta pages and its list of tables show it, in words; None: nothing.

    `names` are those that a table may have: LMDB would make an empty one in the place of another that is misspelt.

    A few reads of a page, for every open (0.2 ms): with these pages sound LMDB opens the file and begins a transaction
    without harm. OSError.
    """
    for _ in range(_TRIES):
        wrong = _look(file, names)
        if wrong is None:
            break
        time.sleep(_PAUSE_S)  # a writer may have been writing the very page
    return wrong


def _look(file: Path, names: Collection[bytes]) -> str | None:
    with read_plain(file) as data:
        head = read_head(data.fileno())
        wrong = doubt(head)
        meta = newest_meta(head)
        if wrong is not None or meta is None:
            return wrong
        pages = Pages(data.fileno(), meta)
        for name, tree in pages.tables().items():
            if name not in names:
                return f"it has a table {name!r}"
            if tree.flags or (tree.root is not None and not 2 <= tree.root <= meta.last_page):
                return f"its table {name.decode(errors='replace')} leads nowhere"
        if pages.faults:
            return pages.faults[0]
    return None


def look_through(fd: int, meta: Meta) -> str | None:
    """What is wrong with the pages of one state of the index, in words; None: nothing that could end a process or have
    a save write over what is in use. The pages must not be given out anew meanwhile. 0.7 µs a page. OSError.
    """
    from ijfs_engine._native.index_walk import IndexWalk

    count = min(meta.last_page + 1, os.fstat(fd).st_size // meta.page_size)
    walk = IndexWalk(fd, meta.page_size, count)
    try:
        _walk(walk, meta.main)
        for tree in Pages(fd, meta).tables().values():
            _walk(walk, tree)
        _walk(walk, meta.free, numbers=True)
    except ValueError as fault:
        return str(fault)
    return None


def _walk(walk: IndexWalk, tree: Tree, *, numbers: bool = False) -> None:
    """Look at all pages of a tree. ValueError."""
    met = walk.tree(tree.root, tree.depth, numbers) if tree.root is not None else (0, 0, 0, 0)
    said = (tree.branch_pages, tree.leaf_pages, tree.long_pages, tree.entries)
    if met != said:
        raise ValueError(f"a table has other numbers of pages and rows, {met}, than it says, {said}")
