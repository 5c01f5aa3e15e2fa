"""Programs that have ended, with files still there: would any be missed; a snapshot of them. For claim.py, api.py."""

from __future__ import annotations

import os
from itertools import islice

import msgspec

from ijfs.live.client.record import record_of
from ijfs.live.errors import CriuMissingError, InstanceExistsError, InstanceExitedError, UnsavedFilesError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import write_record
from ijfs.live.model.records import SaveResult
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import KeeperLock, keeper_ended
from ijfs_engine.errors import LockedError

_NAMED = 3
"""Files that a refusal names."""

_MOST = 1000
"""Files that it counts."""


def refuse_if_missed(paths: InstancePaths) -> None:
    """UnsavedFilesError where an ended program wrote files that are in no snapshot. For who has its lock."""
    from ijfs.live.checkpoint.ended_files import unsaved_files

    found = list(islice(unsaved_files(paths, record_of(paths)), _MOST))
    if not found:
        return
    name, count = paths.root.name, f"{len(found)}{'+' if len(found) == _MOST else ''}"
    listed = ", ".join(found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
    files = "file that is in no snapshot is" if len(found) == 1 else "files that are in no snapshot are"
    raise UnsavedFilesError(
        f"`{name}` has ended, and {count} {files} still there: {listed}",
        hint=f"`ijfs save {name}` keeps them, `ijfs cp {name}:{found[0]} .` brings one out; with `--replace`, or after "
        f"`ijfs stop --rm {name}`, they are gone",
    )


def save_ended(repo: str | os.PathLike[str], name: str, *, message: str = "", branch: str | None = None) -> SaveResult:
    """A snapshot of the files of an ended program, without memory, on a branch of its own (`NAME.ended`): its own
    branch goes on naming what can be restored. InstanceExitedError where there is nothing that is not saved,
    LockedError where its keeper has not ended, InstanceExistsError where it runs again."""
    from ijfs.live.checkpoint.ended_files import save_files, unsaved_files
    from ijfs.live.checkpoint.snapshot_io import LiveMeta, machine_versions

    paths = InstancePaths.of(repo, name)
    record_of(paths)
    lock = KeeperLock.take_soon(paths) if keeper_ended(paths) else None
    if lock is None:
        raise LockedError(f"the keeper of `{name}` has not ended", hint=f"its log is {paths.keeper_log}")
    with lock:
        record = record_of(paths)
        if procfs.is_alive(record.program):
            raise InstanceExistsError(f"`{name}` runs again")
        if next(unsaved_files(paths, record), None) is None:
            raise InstanceExitedError(f"the program of `{name}` has ended, and left no file that is not saved")
        branch = branch or f"{record.branch or name}.ended"
        meta = LiveMeta(
            spec=record.spec, volumes=record.volumes, versions=machine_versions(_criu()), base=record.base, ended=True
        )
        outcome = save_files(paths, record, meta, message=message, branch=branch)
        snapshot = outcome.snapshot
        write_record(paths, msgspec.structs.replace(record, snapshot=snapshot.id.hex(), save_error=""))
    return SaveResult(
        snapshot=snapshot.id.hex(),
        branch=branch,
        parent=snapshot.parents[0].hex() if snapshot.parents else None,
        message=message,
        image_bytes=0,
        workspace_bytes=snapshot.size or 0,
        stored_bytes=outcome.stored_bytes,
        frozen_s=0.0,
        phases={},
        warnings=(f"`{name}` has ended: the snapshot holds its files, and no memory to go on from", *outcome.notes),
        stopped=True,
    )


def _criu() -> tuple[int, ...]:
    from ijfs.live.criu import command

    try:
        return command.version(command.find())
    except CriuMissingError:
        return ()
