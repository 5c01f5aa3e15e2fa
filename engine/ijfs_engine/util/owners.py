"""Directories that root makes where others are at home: what comes to be in somebody's home directory is theirs."""

from __future__ import annotations

import os
from pathlib import Path


def make_directories(path: Path, mode: int = 0o777) -> None:
    """Make a directory and those above it that are missing; each belongs to who owns the nearest one that was there.

    By descriptors: whoever owns that one could put a link in the place of what has just been made. OSError, also where
    something else is at the path.
    """
    missing: list[str] = []
    there = path.absolute()
    while not there.exists():
        missing.insert(0, there.name)
        there = there.parent
    parent = os.open(there, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(parent)
        for name in missing:
            child = _make(name, parent, mode, owner)
            os.close(parent)
            parent = child
    finally:
        os.close(parent)


def _make(name: str, parent: int, mode: int, owner: os.stat_result) -> int:
    made = True
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        made = False
    child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    if made and os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(child, owner.st_uid, owner.st_gid)
    return child
