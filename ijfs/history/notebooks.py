"""Notebooks as documents: read, what is in a cell, which cells of two versions are one another's. Pure.

Used by the command line (`ijfs diff -p`) and by the Jupyter server's extension, which show it each in its own way.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Document = dict[str, Any]
Cell = Mapping[str, Any]


def read(content: bytes) -> Document | None:
    """The document; None for what is no JSON object."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def cells_of(document: Document | None) -> list[Cell]:
    """All cells, of any kind."""
    found = (document or {}).get("cells")
    return [cell for cell in found if isinstance(cell, dict)] if isinstance(found, list) else []


def code_of(document: Document | None) -> list[Cell]:
    """The cells that are code."""
    return [cell for cell in cells_of(document) if cell.get("cell_type") == "code"]


def source(cell: Cell) -> str:
    """What is typed in a cell; on disk it may be a list of lines."""
    text = cell.get("source", "")
    return "".join(map(str, text)) if isinstance(text, list) else str(text)


def outputs(cell: Cell | None) -> list[Any]:
    """A cell's outputs without the prompt's number, which is another at every run."""
    found = (cell or {}).get("outputs") or []
    return [
        {key: value for key, value in one.items() if key != "execution_count"}
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, dict)
    ]


def paired(old: Sequence[Cell], new: Sequence[Cell]) -> Iterator[tuple[Cell | None, Cell | None]]:
    """Cells that are one another's, in the order of the new notebook; what was removed stands where it was. By their
    ids; a notebook before format 4.5 has none, and goes by the sources."""
    by_id = all(cell.get("id") for cell in (*old, *new))
    names = [[str(cell["id"]) if by_id else source(cell) for cell in side] for side in (old, new)]
    matcher = difflib.SequenceMatcher(a=names[0], b=names[1], autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal" or (not by_id and what == "replace" and b - a == d - c):
            yield from zip(old[a:b], new[c:d], strict=True)
        else:
            yield from ((cell, None) for cell in old[a:b])
            yield from ((None, cell) for cell in new[c:d])
