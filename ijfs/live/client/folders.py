"""What would become of folders that a program shares with this machine. For the command line, which asks."""

from __future__ import annotations

from typing import NamedTuple

from ijfs.live.adopt.folders import shared_in, steps_back
from ijfs.live.checkpoint.snapshot_io import live_meta
from ijfs_engine import Repository, Snapshot


class Changed(NamedTuple):
    """Folders that a program would go on in, and how many files in them are not as they were."""

    folders: tuple[str, ...]
    files: int


def changed_since(repository: Repository, snapshot: Snapshot, name: str) -> Changed:
    """Compare the folders that a snapshot's program shared with what they are; nothing where it comes back as another
    program, which has its own. NotLiveError, StorageError, CorruptError."""
    meta = live_meta(snapshot)
    folders = tuple(volume.path for volume in shared_in(meta)) if meta.spec.name == name else ()
    if not folders:
        return Changed((), 0)
    return Changed(folders, sum(1 for _ in steps_back(repository.reader(), snapshot.root, meta, repository.path)))
