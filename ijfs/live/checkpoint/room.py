"""Whether a snapshot's program fits into the limits that somebody gives it for its restore, before anything is done.

Memory that comes in lazily is not there yet when limits are set: the kernel takes them, and kills the program a moment
later, when the live one that it replaces has ended for it. What a snapshot holds is known before. Called by restore.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore
from ijfs.live.criu import eager_pages
from ijfs.live.errors import LimitError
from ijfs.live.model.records import Limits
from ijfs.live.sandbox.limits import too_much_memory
from ijfs_engine import Entry, Snapshot, is_pages

SPARE_BYTES = 16 << 20
"""What the kernel may need beside a program's own memory: page tables, sockets, and what it maps of files."""


class Need(NamedTuple):
    """What a restored program takes: `least` bytes of memory in any case, at most about `most`, and so many threads."""

    least: int
    most: int
    threads: int


def require(store: SnapshotStore, snapshot: Snapshot, meta: LiveMeta, limits: Limits, *, memory: bool) -> bool:
    """LimitError where the program cannot be within these limits. True: whether its memory is is known only once all of
    it is in. `memory`: all of it is to come; else (on demand, or moved to a GPU) nothing is said of it."""
    new = _new(limits, meta.spec.limits)
    if not new.pids and not (memory and new.memory):
        return False
    images = _images(store, snapshot)
    need = _need(images)
    if new.pids and need.threads > new.pids:
        raise LimitError(
            f"it may have {new.pids:,} processes and threads, and had {need.threads:,} when it was saved",
            hint=f"`--pids {need.threads}` or more",
        )
    if not memory or not new.memory:
        return False
    if need.least > new.memory:  # as far as can be told without reading what the pages files are made of
        certain = _certain(store, images)
        if certain > new.memory:
            raise too_much_memory(certain, new.memory, saved=True)
    return new.memory < need.most + need.most // 4 + SPARE_BYTES


def _new(limits: Limits, before: Limits) -> Limits:
    """Those that are narrower than what it was saved with: within that it was, whatever is reckoned here."""
    memory, pids = limits.memory or 0, limits.pids or 0
    return Limits(
        memory=memory if not before.memory or memory < before.memory else 0,
        pids=pids if not before.pids or pids < before.pids else 0,
    )


def _images(store: SnapshotStore, snapshot: Snapshot) -> dict[str, Entry]:
    tree = store.tree_at(snapshot, "images")
    entries = store.reader.tree(tree).entries if tree is not None else ()
    return {entry.name.decode(errors="replace"): entry for entry in entries if entry.kind == "f"}


def _need(images: Mapping[str, Entry]) -> Need:
    """By the sizes of images. Forked processes may share what each has among its pages: what is certain is that of the
    largest."""
    pages = [entry.size for name, entry in images.items() if is_pages(name)]
    threads = sum(name.startswith("core-") for name in images)
    return Need(max(pages, default=0), sum(pages), threads)


def _certain(store: SnapshotStore, images: Mapping[str, Entry]) -> int:
    """Bytes of the largest pages file that take memory: zeros may take none, and huge pages count for themselves."""
    largest = max((entry for name, entry in images.items() if is_pages(name)), key=lambda entry: entry.size)
    file = store.reader.open(largest)
    filled = sum(piece.length for piece in file.slices(0, file.size) if piece.id is not None)
    opened = {name: store.reader.open(entry) for name, entry in images.items() if _says_of_memory(name)}
    small = {name: part.read(0, part.size) for name, part in opened.items()}
    return filled - eager_pages.reasons(small).get(eager_pages.HUGETLB, 0)


def _says_of_memory(name: str) -> bool:
    return name.startswith(("mm-", "pagemap-")) or name == "memfd.img"
