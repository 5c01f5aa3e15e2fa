"""Which files of a set are a process's pages, and which of the parent's files hold the same address space.

snapshot_writer.py calls it for every directory that is stored. A pagemap that is damaged, lies, or does not fit its
pages file costs nothing but the guidance: the files are then stored as plain bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine._native.page_scan import PAGE
from ijfs_engine.errors import IjfsError
from ijfs_engine.format.page_images import is_pages
from ijfs_engine.format.page_layout import PageLayout
from ijfs_engine.format.records import Entry, Tree
from ijfs_engine.read.reader import Reader
from ijfs_engine.read.stored_file import StoredFile
from ijfs_engine.write import criu_pagemap
from ijfs_engine.write.kept_prints import KeptPrints
from ijfs_engine.write.parent_pages import ParentPages
from ijfs_engine.write.sources import Source, opened

# Without a parent's pagemap of the same name (another pid): the image that shares most addresses, if it is a tenth.
_LEAST_OVERLAP: Final = 0.1
_SMALL: Final = 256 * PAGE


class Image(NamedTuple):
    """A pages file of a set."""

    pagemap: str
    layout: PageLayout


def is_image_directory(path: Path) -> bool:
    """Whether a directory on disk is a CRIU image set."""
    return all((path / name).is_file() for name in ("inventory.img", "pstree.img"))


def find_layouts(files: Mapping[bytes, Source]) -> dict[bytes, Image]:
    """The pages files among the files of one directory, by name."""
    found: dict[bytes, Image] = {}
    for raw, source in files.items():
        name = os.fsdecode(raw)
        if not criu_pagemap.is_pagemap(name):
            continue
        try:
            with opened(source) as file:
                if file.size > criu_pagemap.MAX_PAGEMAP:
                    continue
                pagemap = criu_pagemap.parse_pagemap(file.view(0, file.size))
            pages = pagemap.pages_name.encode()
            with opened(files[pages]) as file:
                found[pages] = Image(name, criu_pagemap.layout_for(pagemap, file.size))
        except (criu_pagemap.PagemapError, KeyError):
            continue
    return found


def find_parent(
    reader: Reader, tree: Tree, image: Image, key: bytes, worn: set[bytes], kept: KeptPrints | None
) -> ParentPages | None:
    """The image of the same address space in a directory of the parent; None if there is nothing like it. `worn` and
    `kept` are `ParentPages`'."""
    file = _named(reader, tree, image.pagemap)
    if file is None and image.layout.pages >= _SMALL // PAGE:
        file = _nearest(reader, tree, image.layout)
    if file is None or file.layout is None:
        return None
    return ParentPages(reader, file, file.layout, key, worn, kept)


def _named(reader: Reader, tree: Tree, pagemap: str) -> StoredFile | None:
    """The pages file that the parent's pagemap of that name speaks of."""
    entry = tree.find(pagemap.encode())
    if entry is None or entry.kind != "f" or entry.size > criu_pagemap.MAX_PAGEMAP:
        return None
    try:
        pages = criu_pagemap.pages_name_in(reader.open(entry).read(0, min(entry.size, criu_pagemap.HEAD_BYTES)))
        found = tree.find(pages.encode())
        return reader.open(found) if found is not None and found.kind == "f" else None
    except criu_pagemap.PagemapError:
        return None


def _nearest(reader: Reader, tree: Tree, layout: PageLayout) -> StoredFile | None:
    best, most = None, int(layout.pages * _LEAST_OVERLAP)
    for file in _pages_files(reader, tree.entries):
        shared = layout.overlap(file.layout) if file.layout else 0
        if shared > most:
            best, most = file, shared
    return best


def _pages_files(reader: Reader, entries: tuple[Entry, ...]) -> Iterator[StoredFile]:
    for entry in entries:
        if entry.kind == "f" and is_pages(entry.name) and entry.size >= _SMALL:
            try:
                file = reader.open(entry)
            except IjfsError:
                continue
            if file.layout is not None:
                yield file
