"""What verbs show of a snapshot: its labels in colours, what is at a path."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ijfs.cli import text

if TYPE_CHECKING:
    from ijfs.cli.output import Span
    from ijfs.history.snapshots import Labels
    from ijfs_engine import Entry, Reader


def spans(labels: Labels, snapshot_id: bytes) -> list[Span]:
    """Branches in brackets, tags in parentheses: [main] (v1)."""
    found: list[Span] = []
    for table, form, style in ((labels.branches, "[{}]", "bold green"), (labels.tags, "({})", "bold magenta")):
        for name in table.get(snapshot_id, ()):
            found += [" ", (form.format(name), style)]
    return found[1:]


def lookup(reader: Reader, root: bytes, path: str) -> Entry:
    """The entry at a path: as ijfs shows a name that cannot be printed or has a backslash, else as it is typed.
    UnknownNameError."""
    from ijfs_engine.errors import UnknownNameError

    for meant in text.unprintable(path):
        with contextlib.suppress(UnknownNameError):
            return reader.lookup(root, meant)
    return reader.lookup(root, path)
