"""What differs between two snapshots: files by their trees, memory page by page at the same address.

Called by `Snapshot.diff`, `ijfs diff` and the panel in JupyterLab. Equal subtrees and files are recognised by their ids
and never read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ijfs_engine import PAGE

if TYPE_CHECKING:
    from ijfs.history.processes import ProcessImage
    from ijfs_engine import Entry, Reader, Snapshot, StoredFile

BLOCK_PAGES = 256
"""Pages compared at once: a MiB that is equal costs one comparison, one that is not costs 256 more."""

OVERLAY = b"trusted.overlay."
"""What the names of an overlay's own attributes begin with."""

Change = Literal["added", "removed", "changed"]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FileChange:
    """A path that differs, and its two sizes (None where it is not there)."""

    path: str
    change: Change
    old_size: int | None
    new_size: int | None


@dataclass
class MemoryChange:
    """The memory of one process in both snapshots, in pages of 4096 bytes."""

    process: str
    old_pages: int = 0
    new_pages: int = 0
    same: int = 0
    changed: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    """(address, pages) of what changed or is new, by address."""

    @property
    def added(self) -> int:
        """Pages at addresses that only the new one has."""
        return self.new_pages - self.same - self.changed

    @property
    def removed(self) -> int:
        """Pages at addresses that only the old one has."""
        return self.old_pages - self.same - self.changed


def files(reader: Reader, old: bytes, new: bytes, *, skip: frozenset[bytes] = frozenset()) -> Iterator[FileChange]:
    """All paths that differ between two trees, by name; `skip`: names at the top that are left out."""
    todo: list[tuple[str, bytes | None, bytes | None]] = [("", old, new)]
    while todo:
        prefix, left, right = todo.pop()
        if left == right:
            continue
        olds, news = _entries(reader, left), _entries(reader, right)
        below = []
        for name in sorted((olds.keys() | news.keys()) - (skip if not prefix else frozenset())):
            before, after = olds.get(name), news.get(name)
            path = prefix + os.fsdecode(name)
            yield from _compared(path, before, after)
            if _tree(before) != _tree(after):
                below.append((path + "/", _tree(before), _tree(after)))
        todo += reversed(below)


def _tree(entry: Entry | None) -> bytes | None:
    return entry.content if entry is not None and entry.kind == "d" else None


def _entries(reader: Reader, tree: bytes | None) -> Mapping[bytes, Entry]:
    return {entry.name: entry for entry in reader.tree(tree).entries} if tree is not None else {}


def _compared(path: str, before: Entry | None, after: Entry | None) -> Iterator[FileChange]:
    if before is not None and after is not None and same_metadata(before, after) and _same_content(before, after):
        return
    yield change_of(path, before, after)


def change_of(path: str, before: Entry | None, after: Entry | None) -> FileChange:
    """What became of a path at which the two are not the same. A file of the machine's that the program deleted is no
    file: a snapshot has a whiteout in its place."""
    gone = after is None or is_deletion(after)
    new = before is None or is_deletion(before)
    change: Change = "removed" if gone else "added" if new else "changed"
    return FileChange(path, change, None if new else _size(before), None if gone else _size(after))


def is_deletion(entry: Entry) -> bool:
    """Whether this says that what the program stands on has nothing there any more (an overlay's whiteout)."""
    return entry.kind == "c" and entry.rdev == 0


def same_metadata(before: Entry, after: Entry) -> bool:
    """Whether two entries of one name are the same but for time and content. What the overlay notes beside a file, such
    as where it was copied from, is not the program's; that a directory hides the one below it is."""
    fields = ("kind", "mode", "uid", "gid", "target", "rdev")
    return all(getattr(before, name) == getattr(after, name) for name in fields) and _own(before) == _own(after)


def _own(entry: Entry) -> list[tuple[bytes, bytes]]:
    return [pair for pair in entry.xattrs if not pair[0].startswith(OVERLAY) or pair[0] == OVERLAY + b"opaque"]


def _same_content(before: Entry, after: Entry) -> bool:
    """A directory's is compared by descending."""
    return before.kind == "d" or (before.size, before.content) == (after.size, after.content)


def _size(entry: Entry | None) -> int | None:
    return None if entry is None else entry.size


def memories(reader: Reader, before: Snapshot, after: Snapshot, progress: OnProgress) -> Iterator[MemoryChange]:
    """The memory of every process of two snapshots."""
    from ijfs.history import processes

    olds, news = (processes.images(reader, s.root) for s in (before, after))
    for pid in sorted(olds.keys() | news.keys()):
        named = news.get(pid) or olds[pid]
        old, new = (_opened(reader, table.get(pid)) for table in (olds, news))
        yield memory(named.title, old, new, progress)


def _opened(reader: Reader, image: ProcessImage | None) -> StoredFile | None:
    return reader.open(image.pages) if image is not None else None


def memory(process: str, old: StoredFile | None, new: StoredFile | None, progress: OnProgress) -> MemoryChange:
    """Compare the pages files of one process, which must have page layouts where they are there."""
    found = MemoryChange(process, _pages(old), _pages(new))
    if old is None or new is None or old.layout is None or new.layout is None:
        return found
    done = 0
    for run in new.layout.runs:
        for first, count in _blocks(run.first, run.pages):
            _compare_block(found, old, new, first, count, new_page=done)
            done += count
        progress(process, done * PAGE, found.new_pages * PAGE)
    found.runs = _joined(sorted(found.runs))
    return found


def _pages(stored: StoredFile | None) -> int:
    return stored.size // PAGE if stored is not None else 0


def _blocks(first: int, count: int) -> Iterator[tuple[int, int]]:
    for at in range(first, first + count, BLOCK_PAGES):
        yield at, min(BLOCK_PAGES, first + count - at)


def _compare_block(
    found: MemoryChange, old: StoredFile, new: StoredFile, first: int, count: int, *, new_page: int
) -> None:
    """Compare pages [first, first + count) of the address space; they begin at `new_page` of the new file."""
    assert old.layout is not None
    fresh = set(range(first, first + count))
    for page, old_page, length in old.layout.locate(first, count):
        left = old.read(old_page * PAGE, length * PAGE)
        right = new.read((new_page + page - first) * PAGE, length * PAGE)
        fresh.difference_update(range(page, page + length))
        if left == right:
            found.same += length
            continue
        differing = [i for i in range(length) if left[i * PAGE : (i + 1) * PAGE] != right[i * PAGE : (i + 1) * PAGE]]
        found.changed += len(differing)
        found.same += length - len(differing)
        found.runs += [((page + i) * PAGE, 1) for i in differing]
    found.runs += [(page * PAGE, 1) for page in fresh]


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for address, pages in runs:
        if joined and joined[-1][0] + joined[-1][1] * PAGE == address:
            joined[-1] = (joined[-1][0], joined[-1][1] + pages)
        else:
            joined.append((address, pages))
    return joined
