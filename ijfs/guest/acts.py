"""What a program does to itself through its keeper, beside being saved: go back, be copied, have a verb run outside.

Called by programs (`ijfs.undo()`, `ijfs.fork(2)`) and by the magics. Each request is repeated until it is settled, as a
save is (saving.py): who is taken back hears nothing any more, and who goes forward again hears `resumed`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from ijfs.guest import hooks, port, saving


class Forked(int):
    """What `fork` returns: 0 in the program that forked, with the `names` of the copies; in each copy its number, from
    1, with its own `name`."""

    names: tuple[str, ...] = ()
    name: str = ""


def fork(count: int = 1, message: str = "") -> Forked:
    """Make live copies of this very program, which all go on from here: returns 0 here, and the copy's number in each.

    Each copy has its own memory, files and network; `ijfs ps` shows them, `ijfs stop` ends them. Raises `GuestError`.
    """
    hooks.refuse_inside_barrier()
    hooks.prepare()
    answer = saving.settled(saving.new_request("fork", count=count, message=message))
    found = Forked(answer.get("number") or 0)
    found.names = tuple(answer.get("names") or ())
    found.name = str(answer.get("instance", ""))
    return found


def undo() -> None:
    """Go back to before the last cell, or as near as a snapshot is: this program is replaced, and does not return.

    What it is now is saved first. Where that is restored, later, this returns. Raises `GuestError` where there is no
    snapshot to go back to.
    """
    back("")


def back(snapshot: str, *, save_first: bool = True) -> None:
    """Go back to a snapshot in place; as `undo` otherwise."""
    hooks.refuse_inside_barrier()
    hooks.prepare()
    saving.settled(saving.new_request("back", snapshot=snapshot, save_first=save_first))


def outside(words: Sequence[str]) -> tuple[int, str, str]:
    """Have a verb of the command line run outside; its exit code, and what it printed on both streams."""
    columns = shutil.get_terminal_size((100, 24)).columns
    answer: dict[str, Any] = saving.settled(saving.new_request("verb", words=list(words), columns=columns))
    if answer.get("state") != "done":
        raise port.GuestError(f"the keeper answered a verb with {answer.get('state')!r}")
    return int(answer["code"]), str(answer["out"]), str(answer["err"])
