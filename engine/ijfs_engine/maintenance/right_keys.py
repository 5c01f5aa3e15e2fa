"""Whether the keys of an encrypted repository are its own, asked before fsck believes that what they do not open is
damaged.

Frames have checksums over what is stored. One that passes them and does not open was sealed by another key: where none
opens, it is the keys that are wrong, and a repair would let go of all there is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import Encrypted
from ijfs_engine.maintenance.index_check import salvage
from ijfs_engine.storage import disk
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.frame_scan import Scanned, scan_frames
from ijfs_engine.storage.index import REFLOG, REFS
from ijfs_engine.storage.pack import own_pack_files
from ijfs_engine.storage.unlocking import LockedRepositoryError

_LOOK: Final = 16
"""Sound frames of a file that are tried."""


def check_keys(directory: RepositoryDirectory) -> None:
    """LockedRepositoryError where the keys open nothing, or lack one that later packs are sealed by. StorageError."""
    crypt = directory.crypt
    if not isinstance(crypt, Encrypted):
        return
    with disk.storage_errors("trying the keys"):
        packs = [path for _, path in own_pack_files(directory.packs, directory.id)]
        tried = [_opens(path, crypt) for path in packs]
        if any(_newest(path, crypt) > crypt.ring.newest for path in packs):
            raise _wrong(directory, "are from before a rotation: later packs are sealed by a key that they lack")
        if directory.journal.exists():
            tried.append(_opens(directory.journal, crypt))
    if True in tried or False not in tried:
        return
    rows = salvage(directory.index / "data.mdb", crypt)
    if not rows[REFS] and not rows[REFLOG]:
        raise _wrong(directory, "open nothing in it: they are of another repository, or from before a rotation")


def _wrong(directory: RepositoryDirectory, why: str) -> LockedRepositoryError:
    return LockedRepositoryError(
        f"the keys in {directory.keys} {why}",
        hint="nothing was changed; put back the right `keys` from a copy, or from a remote's `keys/`",
    )


def _sound(path: Path) -> Iterator[Scanned]:
    found = (one for one in scan_frames(path) if one.frame is not None and one.header is not None)
    return itertools.islice(found, _LOOK)


def _opens(path: Path, crypt: Encrypted) -> bool | None:
    """Whether a frame of a file opens; None where it has no sound one."""
    tried = None
    for scanned in _sound(path):
        assert scanned.frame is not None
        assert scanned.header is not None
        tried = False
        try:
            # A key that the ring lacks is asked for anew at each frame, which takes long.
            if crypt.sealed_by(scanned.frame) in crypt.ring.sealing:
                crypt.open(scanned.header.kind, scanned.frame)
                return True
        except CorruptError:
            continue
    return tried


def _newest(path: Path, crypt: Encrypted) -> int:
    """The number of the key that sealed a pack: one session wrote it, and so its first sound frame tells."""
    for scanned in _sound(path):
        assert scanned.frame is not None
        try:
            return crypt.sealed_by(scanned.frame)
        except CorruptError:
            continue
    return 0
