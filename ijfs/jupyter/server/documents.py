"""Notebooks that were stored with snapshots: read, and compared cell by cell. Blocking; called by api.py."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ijfs_engine import Reader, Snapshot
from ijfs_engine.errors import UnknownNameError

NOTEBOOK = "notebook.ipynb"
"""Where a snapshot has it (docs/architecture.md)."""

Cell = Mapping[str, Any]
Document = dict[str, Any]


def document_of(reader: Reader, snapshot: Snapshot) -> Document | None:
    """The notebook of a snapshot; None where there is none, or what is there cannot be read as one."""
    try:
        stored = reader.open(reader.lookup(snapshot.root, NOTEBOOK))
        found = json.loads(stored.read(0, stored.size))
    except (UnknownNameError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def cells(old: Document | None, new: Document | None) -> list[dict[str, Any]]:
    """Code cells side by side, in the order of the new notebook; what was removed stands where it was."""
    return [_pair(before, after) for before, after in _aligned(_code(old), _code(new))]


def _code(document: Document | None) -> list[Cell]:
    found = (document or {}).get("cells", [])
    return [cell for cell in found if isinstance(cell, dict) and cell.get("cell_type") == "code"]


def _aligned(old: Sequence[Cell], new: Sequence[Cell]) -> Iterator[tuple[Cell | None, Cell | None]]:
    """Cells that are one another's: by their ids; a notebook before format 4.5 has none, and goes by the sources."""
    by_id = all(cell.get("id") for cell in (*old, *new))
    names = [[str(cell["id"]) if by_id else source(cell) for cell in side] for side in (old, new)]
    matcher = difflib.SequenceMatcher(a=names[0], b=names[1], autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal" or (not by_id and what == "replace" and b - a == d - c):
            yield from zip(old[a:b], new[c:d], strict=True)
        else:
            yield from ((cell, None) for cell in old[a:b])
            yield from ((None, cell) for cell in new[c:d])


def _pair(before: Cell | None, after: Cell | None) -> dict[str, Any]:
    left, right = (None if cell is None else source(cell) for cell in (before, after))
    change = "added" if before is None else "removed" if after is None else "same" if left == right else "changed"
    outputs = [_outputs(cell) for cell in (before, after)]
    return {
        "change": change,
        "cell_type": "code",
        "old": left,
        "new": right,
        "old_count": before.get("execution_count") if before else None,
        "new_count": after.get("execution_count") if after else None,
        "lines": list(_lines(left or "", right or "")),
        "outputs": "same" if outputs[0] == outputs[1] else "changed",
        "old_outputs": outputs[0],
        "new_outputs": outputs[1],
    }


def source(cell: Cell) -> str:
    """What is typed in a cell; on disk it may be a list of lines."""
    text = cell.get("source", "")
    return "".join(text) if isinstance(text, list) else str(text)


def _outputs(cell: Cell | None) -> list[Any]:
    """A cell's outputs without the prompt's number, which is another at every run."""
    found = (cell or {}).get("outputs") or []
    return [{key: value for key, value in one.items() if key != "execution_count"} for one in found]


def _lines(old: str, new: str) -> Iterator[tuple[str, str]]:
    for line in difflib.ndiff(old.splitlines(), new.splitlines()):
        if line[0] in " -+":
            yield line[0], line[2:]
