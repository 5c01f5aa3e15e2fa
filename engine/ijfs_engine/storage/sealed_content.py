"""Whether the bytes of a repository are sealed, by the bytes themselves: the file `format` may be that of another one.

`RepositoryDirectory.find` asks, so that an encrypted repository is never taken for a plain one that is empty.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Final

from ijfs_engine.errors import CorruptError, UnknownFormatError, is_refusal
from ijfs_engine.format.crypt import OVERHEAD
from ijfs_engine.format.frames import HEADER_SIZE, Codec, FrameHeader, decode_header
from ijfs_engine.storage import disk
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, decode_pack_header, pack_files

_LOOK: Final = 64
"""Frames of a pack that are looked at for one that is stored as it is."""


def has_keys(path: Path) -> bool:
    """Whether there are ways into an encrypted repository. OSError."""
    try:
        return any(name.endswith(".key") for name in os.listdir(path / "keys"))
    except (FileNotFoundError, NotADirectoryError):
        return False


def sealed_journal(path: Path) -> tuple[bytes, bool] | None:
    """The repository that the journal's head names, and whether its first line is sealed; None without one.
    OSError where the system refuses to look."""
    file = path / "journal"
    try:
        with disk.read_plain(file) as data:
            owner = decode_pack_header(data.read(PACK_HEADER_SIZE), file)[2]
            sealed = _is_sealed(decode_header(data.read(HEADER_SIZE)))
    except (CorruptError, UnknownFormatError):
        return None
    except OSError as error:
        if is_refusal(error):
            raise
        return None
    return (owner, sealed) if sealed is not None else None


def is_sealed(path: Path, ident: bytes) -> bool | None:
    """Whether anything in the packs, or in the journal where that is the repository's own, is sealed; None where
    nothing there tells. OSError."""
    journal = sealed_journal(path)
    found = {journal[1]} if journal is not None and journal[0] == ident else set()
    for _, file in pack_files(path / "packs") if True not in found else ():
        sealed = _sealed_pack(file)
        if sealed:
            return True
        if sealed is not None:
            found.add(sealed)
    return any(found) if found else None


def _sealed_pack(file: Path) -> bool | None:
    for scanned in itertools.islice(scan_frames(file), _LOOK):
        sealed = _is_sealed(scanned.header) if scanned.header is not None and scanned.frame is not None else None
        if sealed is not None:
            return sealed
    return None


def _is_sealed(header: FrameHeader) -> bool | None:
    """Of bytes that are stored as they are the length tells; of others nothing does."""
    if header.codec != Codec.RAW:
        return None
    return {header.plain: False, header.plain + OVERHEAD: True}.get(header.stored)
