"""Pins: what keeps a snapshot from gc and rm while a live instance needs it, and no longer.

A pin is a flocked file: one whose owner died is recognised by that, and the next pin removes it. `Repository.pin` makes
one; gc and rm ask `live_pins` inside their write transactions.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ijfs_engine.errors import CorruptError, UnknownNameError
from ijfs_engine.format.records import ObjectId
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import SNAPSHOTS, Index, Update
from ijfs_engine.storage.locks import LockFile, live_files


class PinInfo(msgspec.Struct, frozen=True, array_like=True):
    """Who holds which snapshot."""

    id: ObjectId
    owner: str
    pid: int


class Pin:
    """A pinned snapshot; `close`, leaving the context, or the end of the process lets it go."""

    def __init__(self, file: LockFile, info: PinInfo) -> None:
        self._file = file
        self.info = info

    def close(self) -> None:
        """Let the snapshot go; safe to call twice."""
        self._file.close()

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def make_pin(directory: Path, index: Index, ident: ObjectId, owner: str, *, elsewhere: bool = False) -> Pin:
    """Pin a listed snapshot, or one that is `elsewhere`. UnknownNameError if it is gone, StorageError."""
    info = PinInfo(ident, owner, os.getpid())
    with disk.storage_errors("pinning a snapshot"):
        file = LockFile.create(directory)
        try:
            file.write(msgspec.msgpack.encode(info))
            # rm and gc look at the pins inside a write transaction: passing through one orders us with them.
            if not elsewhere:
                index.write(lambda update: _check_listed(update, ident))
        except BaseException:
            file.close()
            raise
    return Pin(file, info)


def live_pins(directory: Path) -> list[PinInfo]:
    """The pins of living owners. OSError, CorruptError."""
    pins: list[PinInfo] = []
    for path, data in live_files(directory):
        if not data:
            continue  # its maker has yet to pass through a write transaction, and will see what we leave
        try:
            pins.append(msgspec.msgpack.decode(data, type=PinInfo))
        except msgspec.MsgspecError as error:
            raise CorruptError(f"the pin {path.name} cannot be read: {error}") from error
    return pins


def _check_listed(update: Update, ident: ObjectId) -> None:
    if update.get(SNAPSHOTS, ident) is None:
        raise UnknownNameError(f"the snapshot {ident.hex()[:12]} is gone")
