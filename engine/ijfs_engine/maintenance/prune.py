"""Thinning out: which snapshots of each branch a policy keeps, and the removal of the others.

`Repository.prune` calls it. A branch is a line of first parents from its head; each line is thinned by itself, and a
snapshot that any line keeps stays. Heads, tagged and pinned snapshots always stay. gc then frees the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from ijfs_engine.errors import IjfsError
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.storage import disk, history
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pins import live_pins


class PrunePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How many to keep of each branch: the newest ones, and the newest of each hour, day… of local time that has any.

    -1 keeps all of a kind. At least one number is not 0.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class PruneReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was, or with dry_run would be, kept (with the reasons) and removed; newest first."""

    dry_run: bool
    kept: list[tuple[ObjectId, tuple[str, ...]]]
    removed: list[ObjectId]


_PERIODS: Final[tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...]] = (
    ("hourly", lambda at: (at.year, at.month, at.day, at.hour)),
    ("daily", lambda at: (at.year, at.month, at.day)),
    ("weekly", lambda at: at.isocalendar()[:2]),
    ("monthly", lambda at: (at.year, at.month)),
    ("yearly", lambda at: (at.year,)),
)


def prune(repository: OpenRepository, policy: PrunePolicy, *, dry_run: bool) -> PruneReport:
    """Apply a policy to every branch. IjfsError for a policy that keeps nothing."""
    if not any(getattr(policy, field) for field in policy.__struct_fields__):
        raise IjfsError("this would keep nothing", hint="say what to keep, such as --keep-last 10")
    snapshots = {one.id: one for one in history.snapshots(repository)}
    reasons: dict[ObjectId, list[str]] = {}
    in_lines: set[ObjectId] = set()
    for name, head in repository.refs.branches().items():
        line = _line(repository, snapshots, head)
        in_lines.update(one.id for one in line)
        for ident, reason in [(head, f"head of {name}"), *select(line, policy)]:
            reasons.setdefault(ident, []).append(reason)
    for ident, reason in _held(repository):
        reasons.setdefault(ident, []).append(reason)
    # What is in no branch's line (another parent of a merge, something without a name) is not this policy's business.
    removed = [ident for ident in snapshots if ident in in_lines and ident not in reasons]
    if not dry_run:
        history.remove(repository, removed)
    kept = [(ident, tuple(reasons.get(ident, ["in no branch's line"]))) for ident in snapshots if ident not in removed]
    return PruneReport(dry_run=dry_run, kept=kept, removed=removed)


def select(line: Sequence[Snapshot], policy: PrunePolicy) -> list[tuple[ObjectId, str]]:
    """(id, reason) of what a policy keeps of one line, which is newest first."""
    chosen = [(one.id, "last") for one in _first(line, policy.last)]
    for name, period in _PERIODS:
        newest: dict[tuple[int, ...], Snapshot] = {}
        for one in line:
            newest.setdefault(period(datetime.fromtimestamp(one.created_ns / 1e9).astimezone()), one)
        chosen += [(one.id, name) for one in _first(list(newest.values()), getattr(policy, name))]
    return chosen


def _first(line: Sequence[Snapshot], number: int) -> Sequence[Snapshot]:
    return line if number < 0 else line[:number]


def _line(repository: OpenRepository, snapshots: Mapping[ObjectId, Snapshot], head: ObjectId) -> list[Snapshot]:
    line: list[Snapshot] = []
    ident: ObjectId | None = head
    while ident is not None and ident in snapshots:
        line.append(snapshots[ident])
        ident = history.nearest(repository, snapshots[ident].parents[:1])
    return line


def _held(repository: OpenRepository) -> Iterable[tuple[ObjectId, str]]:
    yield from ((ident, f"tag {name}") for name, ident in repository.refs.tags().items())
    with disk.storage_errors("reading the pins"):
        pins = live_pins(repository.directory.pins).pins
    yield from ((pin.id, f"in use by {pin.owner}") for pin in pins)
