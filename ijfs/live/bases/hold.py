"""A keeper's side of bases: the directory that its sandbox stands on, held for as long as the keeper lives."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from pathlib import Path

from ijfs.live.bases import cache, delta
from ijfs.live.errors import SandboxError
from ijfs.live.model.records import Base
from ijfs.live.sandbox.lower import HOST, Lower
from ijfs_engine import Progress, Repository
from ijfs_engine.errors import UnknownNameError


def for_start(repo: Path, base: Base | None, changed: dict[str, list[str]] | None) -> Lower:
    """What a new program stands on; its client has seen to it that the directory is there."""
    if base is None:
        return HOST
    place = cache.directory_of(repo, base.snapshot)
    fd = _held(place)
    if not place.root.is_dir():
        os.close(fd)
        raise SandboxError(f"the base `{base.name}` is gone from {place.path}", hint="start it again")
    found = delta.unpacked(changed)
    return Lower(place.root, base, fd, partial(delta.put_into, root=Path("/"), delta=found) if found else None)


def for_restore(repository: Repository, base: Base | None, progress: Progress | None = None) -> Lower:
    """What a restored program stands on: its own base, whatever this machine has by now. Made where it is not there.

    SandboxError where the repository has not got it (any more), StorageError.
    """
    if base is None:
        return HOST
    with cache.in_use(repository.path):
        try:
            snapshot = repository.snapshot(bytes.fromhex(base.snapshot))
        except UnknownNameError:
            raise SandboxError(
                f"the program ran on the base `{base.name}` ({base.snapshot[:12]}), which is not in this repository",
                hint="`ijfs base list` shows those that are",
            ) from None
        found, root = cache.materialised(repository, snapshot, base.name, progress)
        return Lower(root, found, _held(cache.directory_of(repository.path, base.snapshot)))


def adopted(repo: Path, base: Base) -> Lower:
    """What a program stands on that ran without a keeper."""
    place = cache.directory_of(repo, base.snapshot)
    return Lower(place.root, base, _held(place))


def _held(place: cache.BaseDirectory) -> int:
    place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(place.users, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
