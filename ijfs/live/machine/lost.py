"""Programs that ran when the machine went down: what `ijfs doctor` names, and `ijfs restore --lost` brings back.

Their records are of another boot than this one, and say `running`, or that program and keeper were told to end: what a
machine that goes down in order does. Who ended a program before that has left a record that says so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ijfs.live.model.paths import InstancePaths, live_directory
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import WENT_DOWN
from ijfs.live.process import procfs
from ijfs_engine.errors import IjfsError


class Lost(NamedTuple):
    """One that ended with the machine, and the snapshot that it stood on, if there is one."""

    name: str
    snapshot: str | None


def lost(repo: Path) -> list[Lost]:
    """By name; one whose record cannot be read is left out."""
    live = live_directory(repo)
    found = []
    for name in sorted(os.listdir(live)) if live.is_dir() else ():
        try:
            record = read_record(InstancePaths.of(repo, name))
        except IjfsError:
            continue
        ran = record.status == "running" or (record.status == "exited" and record.note == WENT_DOWN)
        if ran and record.boot_id != procfs.boot_id():
            found.append(Lost(name, record.snapshot))
    return found
