"""Thinning out: which snapshots of each branch a policy keeps, and the removal of the others.

`Repository.prune` calls it. A branch is a line of first parents from its head; each line is thinned by itself, and a
snapshot that any line keeps stays. Heads, tagged and pinned snapshots always stay. gc then frees the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Final

import msgspec

from ijfs_engine.errors import ConflictError, CorruptError, IjfsError, StorageError, UnknownNameError
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.maintenance.unnamed_branches import unnamed
from ijfs_engine.storage import disk, listed
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pins import live_pins


class PrunePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How many to keep of each branch: the newest ones, and the newest of each hour, day… of local time that has any.

    -1 keeps all of a kind. At least one number is not 0, or `unnamed_older_than_s` is given.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    unnamed_older_than_s: float | None = None
    """Drop branches that nobody named and nothing lives on (unnamed_branches.py), made so many seconds ago or more, and
    the snapshots that only they lead to. Alone, it thins nothing out."""


class PruneReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was, or with dry_run would be, kept (with the reasons) and removed; newest first."""

    dry_run: bool
    kept: list[tuple[ObjectId, tuple[str, ...]]]
    removed: list[ObjectId]
    branches: list[tuple[str, ObjectId]] = []
    """Branches that nobody named, with their heads, which are dropped."""


_TRIES: Final = 5
_NUMBERS: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")

_PERIODS: Final[tuple[tuple[str, Callable[[datetime], tuple[int, ...]]], ...]] = (
    ("hourly", lambda at: (at.year, at.month, at.day, at.hour)),
    ("daily", lambda at: (at.year, at.month, at.day)),
    ("weekly", lambda at: at.isocalendar()[:2]),
    ("monthly", lambda at: (at.year, at.month)),
    ("yearly", lambda at: (at.year,)),
)


def prune(repository: OpenRepository, policy: PrunePolicy, *, dry_run: bool) -> PruneReport:
    """Apply a policy to every branch. IjfsError for a policy that keeps nothing."""
    if not any(getattr(policy, field) for field in _NUMBERS) and policy.unnamed_older_than_s is None:
        raise IjfsError("this would keep nothing", hint="say what to keep, such as --keep-last 10")
    for _ in range(_TRIES):
        try:
            return _pruned(repository, policy, dry_run=dry_run)
        except (CorruptError, StorageError):
            raise
        except IjfsError:
            pass  # another command has removed, tagged or taken one of them since: it is looked at again
    return _pruned(repository, policy, dry_run=dry_run)


def _pruned(repository: OpenRepository, policy: PrunePolicy, *, dry_run: bool) -> PruneReport:
    snapshots = {one.id: one for one in listed.snapshots(repository)}
    held = list(_held(repository))
    dropped = _dropped(repository, policy, snapshots, {ident for ident, _ in held})
    if not dry_run:
        dropped = {name: head for name, head in dropped.items() if _delete(repository, name, head)}
    reasons, removed = _thinned(repository, policy, snapshots, dropped, held)
    if dropped:
        named = [head for name, head in repository.refs.branches().items() if name not in dropped]
        needed = _ancestry(repository, snapshots, [*named, *(ident for ident, _ in held)])
        gone = {one.id for head in dropped.values() for one in _line(repository, snapshots, head)} - needed
        removed = [ident for ident in snapshots if ident in gone or ident in removed]
    if not dry_run:
        listed.remove(repository, removed)
    taken = set(removed)
    kept = [
        (ident, tuple(dict.fromkeys(reasons.get(ident, ["in no branch's line"]))))
        for ident in snapshots
        if ident not in taken
    ]
    return PruneReport(dry_run=dry_run, kept=kept, removed=removed, branches=sorted(dropped.items()))


def _thinned(
    repository: OpenRepository,
    policy: PrunePolicy,
    snapshots: Mapping[ObjectId, Snapshot],
    dropped: Mapping[str, ObjectId],
    held: Iterable[tuple[ObjectId, str]],
) -> tuple[dict[ObjectId, list[str]], list[ObjectId]]:
    """Why snapshots stay, and those of the branches' lines that do not."""
    everything = not any(getattr(policy, field) for field in _NUMBERS)
    reasons: dict[ObjectId, list[str]] = {}
    in_lines: set[ObjectId] = set()
    for name, head in repository.refs.branches().items():
        if name in dropped:
            continue
        line = _line(repository, snapshots, head)
        in_lines.update(one.id for one in line)
        rest = [(one.id, "no rule thins out") for one in line[1:]] if everything else select(line, policy)
        for ident, reason in [(head, f"head of {name}"), *rest]:
            reasons.setdefault(ident, []).append(reason)
    for ident, reason in held:
        reasons.setdefault(ident, []).append(reason)
    # What is in no branch's line (another parent of a merge, something without a name) is not this policy's business.
    return reasons, [ident for ident in snapshots if ident in in_lines and ident not in reasons]


def _dropped(
    repository: OpenRepository,
    policy: PrunePolicy,
    snapshots: Mapping[ObjectId, Snapshot],
    held: Set[ObjectId],
) -> dict[str, ObjectId]:
    """Branches that nobody named, that are old enough, and on which nothing lives and nothing is tagged."""
    if policy.unnamed_older_than_s is None:
        return {}
    before_ns = time.time_ns() - int(policy.unnamed_older_than_s * 1e9)
    found = unnamed(repository, before_ns)
    named = [head for name, head in repository.refs.branches().items() if name not in found]
    shared = _ancestry(repository, snapshots, named)
    return {
        name: head
        for name, head in found.items()
        if not any(one.id in held and one.id not in shared for one in _line(repository, snapshots, head))
    }


def _delete(repository: OpenRepository, name: str, head: ObjectId) -> bool:
    """Drop a branch unless it has moved meanwhile: then somebody goes on with it."""
    try:
        repository.refs.delete_branch(name, expect=head, why="prune: nobody named it")
    except (ConflictError, UnknownNameError):
        return False
    return True


def _ancestry(
    repository: OpenRepository, snapshots: Mapping[ObjectId, Snapshot], heads: Iterable[ObjectId]
) -> set[ObjectId]:
    """Snapshots that these reach, through all parents and past removed ones."""
    seen: set[ObjectId] = set()
    edge = list(heads)
    while edge:
        ident = edge.pop()
        if ident in seen:
            continue
        seen.add(ident)
        for parent in snapshots[ident].parents if ident in snapshots else ():
            near = parent if parent in snapshots else listed.nearest(repository, [parent])
            if near is not None:
                edge.append(near)
    return seen


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
        ident = listed.nearest(repository, snapshots[ident].parents[:1])
    return line


def _held(repository: OpenRepository) -> Iterable[tuple[ObjectId, str]]:
    yield from ((ident, f"tag {name}") for name, ident in repository.refs.tags().items())
    with disk.storage_errors("reading the pins"):
        pins = live_pins(repository.directory.pins)
    yield from ((pin.id, f"in use by {pin.owner}") for pin in pins)
