"""Files in `packs/` under numbers that no pack here reaches: copies, or packs that somebody renamed.

They are no packs for anyone (`storage/pack.py`): counted on, they would use up the numbers of all that is saved later.
`check` names them, and a repair gives each its own name back before anything else, or another name beside the packs.
"""

from __future__ import annotations

import os
from pathlib import Path

from ijfs_engine.errors import CorruptError, UnknownFormatError
from ijfs_engine.maintenance.pack_check import Finding
from ijfs_engine.storage import disk
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.pack import (
    NUMBERS,
    PACK_HEADER_SIZE,
    decode_pack_header,
    misnamed_pack_files,
    pack_files,
    pack_path,
)

_ASIDE = ".aside"


def misnamed(directory: RepositoryDirectory) -> list[Finding]:
    """Each such file. OSError."""
    message = "no pack here can have that number: it is left aside"
    return [Finding("pack", None, path.name, message) for path in misnamed_pack_files(directory.packs)]


def put_back(directory: RepositoryDirectory) -> list[str]:
    """Name them as they should be; what was done, in sentences. OSError."""
    done = []
    for path in misnamed_pack_files(directory.packs):
        number = _number(directory, path)
        if number is not None and _named(path, pack_path(directory.packs, number)):
            done.append(f"called {path.name} {number:08x}.pack, which it is")
        else:
            aside = path.with_name(path.name + _ASIDE)
            path.replace(aside)
            done.append(f"called {path.name} {aside.name}, where nothing reads it")
    disk.fsync_dir(directory.packs)
    return done


def _number(directory: RepositoryDirectory, path: Path) -> int | None:
    """Which pack of this repository a file is; a free number where it says none that can be; None for another's."""
    free = max((number for number, _ in pack_files(directory.packs)), default=0) + 1
    try:
        with disk.read_plain(path) as file:
            head = file.read(PACK_HEADER_SIZE)
    except CorruptError:
        return None  # a link, or no file
    try:
        number, _, owner = decode_pack_header(head, path)
    except CorruptError:
        return free
    except UnknownFormatError:
        return None
    if owner != directory.id:
        return None
    return number if 0 < number < NUMBERS else free


def _named(path: Path, name: Path) -> bool:
    """Give a file a name that no other has; whether it was free."""
    try:
        os.link(path, name, follow_symlinks=False)
    except FileExistsError:
        return False
    disk.unlink(path)
    return True
