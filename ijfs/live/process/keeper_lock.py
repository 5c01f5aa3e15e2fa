"""Whether a keeper holds an instance: it has `keeper.lock` there locked for as long as it lives (keeper/main.py).

Asked by clients before they claim a directory, and by who sweeps up what killed keepers left (sandbox/cleanup.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import time

from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import Process
from ijfs.live.process import procfs
from ijfs_engine.errors import IjfsError

KEEPER_END_S = 5.0
"""A keeper unmounts and writes its record within some 10 ms of the program's end; a busy machine gets more."""


def keeper_ended(paths: InstancePaths, process: Process | None = None) -> bool:
    """Whether no keeper holds the instance; that of a program which has just ended gets a moment to clean up, and as
    long as it takes to store what was saved. `process`: that one has to be gone too, its mounts with it."""
    deadline = time.monotonic() + KEEPER_END_S
    if not paths.root.exists():
        return True
    while is_kept(paths):
        if time.monotonic() > deadline and not _is_saving(paths):
            return False
        time.sleep(0.02)
    while procfs.is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.005)
    return True


def is_kept(paths: InstancePaths) -> bool:
    """Whether a keeper holds the instance now. Changes nothing: a lock that is not there is held by nobody."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), paths.lock.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_saving(paths: InstancePaths) -> bool:
    with contextlib.suppress(IjfsError):
        record = read_record(paths)
        return record.saving > 0 and procfs.is_alive(record.keeper)
    return False
