"""The variables of a Python kernel, asked from itself: name, type, shape, size, and a digest to compare them by.

For the panel's comparison of two states. A snapshot is asked through a copy of it that lives for that moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ijfs.jupyter.cells import CellTimeoutError, run_cell
from ijfs.live.client import api as client
from ijfs.live.client.instances import named
from ijfs.live.errors import NotLiveError
from ijfs_engine.errors import IjfsError

ANSWER_S = 30.0
"""A copy's memory comes in while it is asked; hashing 1 GiB takes a second."""

CELL = "__import__('ijfs.guest.variables', fromlist=['show']).show(get_ipython().user_ns)"


class Variable(msgspec.Struct, frozen=True):
    """One variable. `shape`: an array's, or a length alone; `size` in bytes; `digest` None where it cannot be had."""

    name: str
    type: str
    shape: list[int] | None
    size: int | None
    digest: str | None


def of_program(repo: Path, name: str) -> list[Variable]:
    """The variables of a live kernel. NotLiveError for one that is not Python's; CellTimeoutError while it is busy."""
    info = client.describe(repo, name)
    if info.connection_file is None or not any("ipykernel" in word for word in info.argv):
        raise NotLiveError(
            "only a Python kernel can be asked for its variables", hint="without `--variables` files are compared"
        )
    if info.kernel is not None and info.kernel.busy:
        raise CellTimeoutError(f"`{name}` is running a cell, and cannot be asked for its variables now")
    result = run_cell(info.connection_file, CELL, ANSWER_S)
    if not result.ok:
        raise IjfsError(f"the kernel could not say its variables: {result.error.strip().splitlines()[-1]}")
    return msgspec.convert(json.loads(result.stdout), list[Variable])


def of_snapshot(repo: Path, snapshot: str) -> list[Variable]:
    """The variables that a kernel had when it was saved: of a copy that is ended again."""
    info = named(repo, None, "compared", lambda name: client.restore(repo, snapshot, name))
    try:
        return of_program(repo, info.name)
    finally:
        with client.connect(repo, info.name) as keeper:
            keeper.stop(timeout_s=0, force=True)
        client.remove(repo, info.name)


def compared(old: Sequence[Variable], new: Sequence[Variable]) -> list[dict[str, Any]]:
    """Side by side, by their names."""
    olds, news = ({variable.name: variable for variable in side} for side in (old, new))
    return [_pair(name, olds, news) for name in sorted(olds.keys() | news.keys())]


def _pair(name: str, olds: Mapping[str, Variable], news: Mapping[str, Variable]) -> dict[str, Any]:
    before, after = olds.get(name), news.get(name)
    return {"name": name, "change": _change(before, after), "old": _shown(before), "new": _shown(after)}


def _change(before: Variable | None, after: Variable | None) -> str:
    if before is None or after is None:
        return "added" if before is None else "removed"
    if (before.type, before.shape) != (after.type, after.shape):
        return "changed"
    if before.digest is None or after.digest is None:
        return "unknown"
    return "same" if before.digest == after.digest else "changed"


def _shown(variable: Variable | None) -> dict[str, Any] | None:
    if variable is None:
        return None
    return {"type": variable.type, "shape": variable.shape, "size": variable.size}
