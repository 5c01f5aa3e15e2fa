"""Notebooks that were stored with snapshots: read, and compared cell by cell. Blocking; called by api.py."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from ijfs.history.notebooks import Cell, Document, code_of, outputs, paired, read, source
from ijfs_engine import Reader, Snapshot
from ijfs_engine.errors import UnknownNameError

NOTEBOOK = "notebook.ipynb"
"""Where a snapshot has it (docs/architecture.md)."""


def document_of(reader: Reader, snapshot: Snapshot) -> Document | None:
    """The notebook of a snapshot; None where there is none, or what is there cannot be read as one."""
    try:
        stored = reader.open(reader.lookup(snapshot.root, NOTEBOOK))
    except UnknownNameError:
        return None
    return read(stored.read(0, stored.size))


def cells(old: Document | None, new: Document | None) -> list[dict[str, Any]]:
    """Code cells side by side."""
    return [_pair(before, after) for before, after in paired(code_of(old), code_of(new))]


def _pair(before: Cell | None, after: Cell | None) -> dict[str, Any]:
    left, right = (None if cell is None else source(cell) for cell in (before, after))
    change = "added" if before is None else "removed" if after is None else "same" if left == right else "changed"
    shown = [outputs(cell) for cell in (before, after)]
    return {
        "change": change,
        "cell_type": "code",
        "old": left,
        "new": right,
        "old_count": before.get("execution_count") if before else None,
        "new_count": after.get("execution_count") if after else None,
        "lines": list(_lines(left or "", right or "")),
        "outputs": "same" if shown[0] == shown[1] else "changed",
        "old_outputs": shown[0],
        "new_outputs": shown[1],
    }


def _lines(old: str, new: str) -> Iterator[tuple[str, str]]:
    for line in difflib.ndiff(old.splitlines(), new.splitlines()):
        if line[0] in " -+":
            yield line[0], line[2:]
