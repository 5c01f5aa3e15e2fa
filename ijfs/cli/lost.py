"""`ijfs restore --lost`: every program that ended with the machine comes back from its last snapshot.

What one wrote after that snapshot is kept first, on its branch `NAME.ended`, as `ijfs save` of an ended program does.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from ijfs.cli import instances, text
from ijfs.cli.app import App
from ijfs.cli.output import Answer, Printer
from ijfs_engine.errors import IjfsError, PartialError

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.machine.lost import Lost
    from ijfs_engine import Repository


class CameBack(NamedTuple):
    """One that runs again; `kept`: the snapshot of what it wrote after its last one."""

    info: InstanceInfo
    kept: str | None


def bring_back(app: App) -> Answer:
    """What could not come back is warned of, and the exit code is 3 then."""
    from ijfs.live.machine.lost import lost

    app.repository()
    found = lost(app.repository_path)
    back = [came for one in found if (came := _one(app, one)) is not None]
    data = {
        "snapshot": None,
        "instance": None,
        "instances": [instances.instance_json(came.info) for came in back],
    }
    return Answer(data, lambda out: _show(out, found, back), PartialError.exit_code if len(back) < len(found) else 0)


def _one(app: App, one: Lost) -> CameBack | None:
    from ijfs.live.client import api as client
    from ijfs.live.errors import InstanceExitedError

    if one.snapshot is None:
        app.warn(f"{one.name}: it was never saved; `ijfs cp {one.name}:PATH .` takes out a file that it wrote")
        return None
    kept = None
    try:
        with contextlib.suppress(InstanceExitedError):  # it wrote nothing after it was saved
            kept = client.save_ended(app.repository_path, one.name, message="when the machine went down").snapshot
        progress = app.progress(f"restore {one.name}")
        snapshot = with_memory(app.repository(), one.snapshot)
        info = client.restore(app.repository_path, snapshot, one.name, replace=True, on_event=progress.event)
        return CameBack(info, kept)
    except IjfsError as error:
        app.warn(f"{one.name}: {error}{f' ({error.hint})' if error.hint else ''}")
        return None


def with_memory(repository: Repository, snapshot: str) -> str:
    """The snapshot itself, or the one before it where it holds but the files of an ended program: an earlier try to
    bring that back has kept them and failed. IjfsError."""
    found = repository.snapshot(repository.resolve(snapshot))
    while found.meta.get("ended") and (parents := repository.parents(found.id)):
        found = repository.snapshot(parents[0])
    return found.id.hex()


def _show(out: Printer, found: list[Lost], back: list[CameBack]) -> None:
    for info, kept in back:
        instances.started(out, info, f"runs from {text.short(bytes.fromhex(info.snapshot or ''))}")
        if kept is not None:
            out.line((f"  what it wrote after that is kept: {kept[: text.SHORT_ID]}", "dim"))
    if not found:
        out.line(("nothing ended with the machine", "dim"))
