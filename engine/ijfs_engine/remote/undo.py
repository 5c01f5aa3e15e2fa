"""Undoing an operation of a remote's tree: one more operation, which puts back what the first one replaced.

Nothing is taken out of the log, so an undo can be undone. What others did since to the same refs is not touched: of
those the undo says that they moved on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ijfs_engine.errors import AmbiguousNameError, UnknownNameError
from ijfs_engine.remote.operation import Change, Listed, Moved, Operation, OperationId, Unlisted
from ijfs_engine.remote.oplog import MERGE, OpLog
from ijfs_engine.remote.remote import Remote
from ijfs_engine.remote.view import View
from ijfs_engine.storage.refs import whoami

_FAR_BACK = 10_000


class UndoReport(NamedTuple):
    """What was undone: refs by name → where they are now; refs that moved on since and stay."""

    operation: OperationId
    why: str
    refs: dict[str, bytes | None]
    moved_on: list[str]


def undo(remote: Remote, prefix: str | None) -> UndoReport:
    """Put back what the newest operation (or the one whose id begins so) replaced. UnknownNameError."""
    remote.find_tree()
    remote.log.refresh()
    remote.log.merge()
    ident, operation = chosen(remote.log, prefix)
    moved_on: list[str] = []
    refs: dict[str, bytes | None] = {}

    def changes(view: View) -> Sequence[Change]:
        found: list[Change] = []
        for change in operation.changes:
            if isinstance(change, Moved):
                now = view.refs.get(change.name, {})
                if change.new is not None and ident not in now:
                    moved_on.append(change.name)
                    continue
                old = _value_before(remote.log, change)
                refs[change.name] = old
                found.append(Moved(change.name, old, tuple(now)))
                if old is not None:
                    found += _relisted(remote.log, view, old)
            elif isinstance(change, Unlisted):
                found += _relisted(remote.log, view, change.id)
        return found

    remote.log.add(changes, who=whoami(), host=os.uname().nodename, why=f"undo of {ident.hex()[:10]}")
    remote.remember()
    return UndoReport(ident, operation.why, refs, moved_on)


def chosen(log: OpLog, prefix: str | None) -> tuple[OperationId, Operation]:
    """The operation whose id begins so, or the newest that somebody wanted. UnknownNameError, AmbiguousNameError."""
    history = log.history(_FAR_BACK if prefix else 2 * len(log.heads) + 8)
    fits = [one for one in history if one[0].hex().startswith(prefix or "") and (prefix or one[1].why != MERGE)]
    if not fits:
        raise UnknownNameError(f"no operation there begins with {prefix}" if prefix else "nothing was done there yet",
                               hint="`ijfs op log` lists them")  # fmt: skip
    if prefix and len(fits) > 1:
        raise AmbiguousNameError(f"{prefix} could be any of {', '.join(one[0].hex()[:12] for one in fits[:10])}")
    return fits[0]


def _value_before(log: OpLog, change: Moved) -> bytes | None:
    """Where a ref was before it was moved; of several places, the one that kept its name."""
    for ident in sorted(change.over):
        for other in log.operation(ident).changes:
            if isinstance(other, Moved) and other.name == change.name:
                return other.new
    return None


def _relisted(log: OpLog, view: View, ident: bytes) -> list[Change]:
    """A snapshot that is listed no longer, as some operation had listed it: its packs may be gone already, which the
    next fsck says."""
    if ident in view.listings:
        return []
    for _, operation in log.history(_FAR_BACK):
        for change in operation.changes:
            if isinstance(change, Listed) and change.id == ident:
                return [Listed(ident, change.created_ns, change.record, change.packs)]
    return []
