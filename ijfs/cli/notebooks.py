"""Two versions of a notebook as a patch, code before outputs: for `ijfs diff -p`. Called by patches.py.

nbdime does it where it is installed. Without it the cells' sources are compared line by line, and of outputs it is said
that they differ.
"""

from __future__ import annotations

import difflib
import io
from argparse import Namespace
from typing import Any

from ijfs.history import notebooks

_CODE = ("sources", "attachments")
_REST = ("outputs",)
_PARTS = (*_CODE, *_REST, "metadata", "identifier", "details")


def patch(path: str, old: bytes, new: bytes) -> str | None:
    """None where one of them is no notebook."""
    before, after = _notebook(old), _notebook(new)
    if before is None or after is None:
        return None
    return _by_nbdime(path, old, new) or _by_lines(path, before, after)


def _notebook(content: bytes) -> notebooks.Document | None:
    found = notebooks.read(content)
    cells = notebooks.cells_of(found)
    sound = found is not None and cells == found.get("cells") and all("source" in cell for cell in cells)
    return found if sound else None


def _by_nbdime(path: str, before: bytes, after: bytes) -> str:
    """Empty where there is none, or it cannot read them."""
    try:
        import nbformat
        from nbdime import diff_notebooks
        from nbdime.diffing.notebooks import reset_notebook_differ, set_notebook_diff_targets
        from nbdime.prettyprint import PrettyPrintConfig, pretty_print_notebook_diff

        old, new = (nbformat.reads(notebook.decode(), as_version=4) for notebook in (before, after))  # type: ignore[no-untyped-call]
        out = io.StringIO()
        for parts in _CODE, _REST:
            set_notebook_diff_targets(**{part: part in parts for part in _PARTS})
            difference = diff_notebooks(old, new)
            shown = Namespace(**{part: part in parts for part in _PARTS})
            config = PrettyPrintConfig(out=out, include=shown, use_git=False, use_diff=False, use_color=False)
            pretty_print_notebook_diff(f"a/{path}", f"b/{path}", old, difference, config)
        reset_notebook_differ()
    except Exception:  # a library that is not there, or a notebook that it does not take
        return ""
    return out.getvalue()


def _by_lines(path: str, before: notebooks.Document, after: notebooks.Document) -> str:
    lines = list(difflib.unified_diff(_sources(before), _sources(after), f"a/{path}", f"b/{path}"))
    if _outputs(before) != _outputs(after):
        lines.append("outputs differ (nbdime, where it is installed, shows how)\n")
    return "".join(lines) or f"nothing but metadata differs: {path}\n"


def _sources(notebook: notebooks.Document) -> list[str]:
    """The cells as lines, each with one above it that says where it begins."""
    lines = []
    for number, cell in enumerate(notebooks.cells_of(notebook), start=1):
        lines.append(f"# cell {number} ({cell.get('cell_type', 'unknown')})\n")
        lines += [line.rstrip("\n") + "\n" for line in notebooks.source(cell).splitlines(keepends=True)]
    return lines


def _outputs(notebook: notebooks.Document) -> list[list[Any]]:
    return [notebooks.outputs(cell) for cell in notebooks.cells_of(notebook)]
