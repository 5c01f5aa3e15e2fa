"""Where undo goes back to. Called by the keeper, for a program, and by Jupyter's server, for a person."""

from __future__ import annotations

from ijfs_engine import ObjectId, Repository, Snapshot
from ijfs_engine.errors import UnknownNameError


def before_cell(repository: Repository, stands_on: ObjectId | None, ran: int | None) -> Snapshot:
    """The newest snapshot of a program's line from before the cell whose number is `ran`; where nobody knows what ran,
    the one that it stands on. UnknownNameError where there is none."""
    found = stands_on
    while found is not None:
        snapshot = repository.snapshot(found)
        if ran is None or (count_of(snapshot) or 0) < ran:
            return snapshot
        found = next(iter(repository.parents(found)), None)
    raise UnknownNameError("nothing was saved before the last cell", hint="save now, and undo goes back to that")


def count_of(snapshot: Snapshot) -> int | None:
    """The number of the last cell that a kernel had run when it was saved; None where it ran none, or it is not
    known."""
    kernel = snapshot.meta.get("kernel")
    count = kernel.get("count") if isinstance(kernel, dict) else None
    return count if isinstance(count, int) else None
