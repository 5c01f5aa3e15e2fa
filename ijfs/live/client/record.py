"""An instance's record as clients read it. Where the file is damaged, its keeper, which knows it, writes it anew."""

from __future__ import annotations

import contextlib

from ijfs.live.client.connection import KeeperClient
from ijfs.live.errors import KeeperError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceRecord
from ijfs_engine.errors import CorruptError

_ANSWER_S = 2.0


def record_of(paths: InstancePaths) -> InstanceRecord:
    """NoInstanceError where there is none; CorruptError where it is damaged and no keeper answers."""
    with contextlib.suppress(CorruptError):
        return read_record(paths)
    with contextlib.suppress(KeeperError, OSError), KeeperClient.open(paths, timeout=_ANSWER_S) as keeper:
        keeper.status()
    return read_record(paths)
