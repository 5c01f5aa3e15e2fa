"""The inode numbers that a program's files had, as a file of its snapshot: `inodes`, beside `files/`.

Written by snapshot_io.py where the program has a disk of its own, read by restore.py. Without it files get new ones.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping

import msgspec

from ijfs.live.model.paths import OverlayDirectories
from ijfs_engine import walk_directory
from ijfs_engine.errors import CorruptError

NAME = "inodes"

_ORIGIN = b"trusted.overlay.origin"

_decoder = msgspec.msgpack.Decoder(dict[bytes, int])


def encode(numbers: Mapping[str, int]) -> bytes:
    """A MessagePack map in the order of its keys: a path in the snapshot's tree to a number."""
    return msgspec.msgpack.encode({os.fsencode(at): numbers[at] for at in sorted(numbers)})


def decode(data: bytes) -> dict[bytes, int]:
    """CorruptError."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise CorruptError(f"the inode numbers of the snapshot are damaged: {error}") from error


def link_index(layers: OverlayDirectories) -> None:
    """Make an overlay's index anew, before it is mounted: each file that began as one of the machine, under the name of
    what it was copied up from. A program sees the machine's inode number of such a file; without the index, its own.

    The index is in the work directory, which is in no snapshot. Directories are not in it: they have numbers of their
    own after a restore. Where the machine is another one, the overlay finds its files by no name, and takes the index
    away. OSError.
    """
    index = layers.work / "index"
    index.mkdir(mode=0, parents=True, exist_ok=True)
    to = os.open(index, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    top = os.open(layers.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for found in walk_directory(top, one_filesystem=True, path=os.fsencode(layers.upper)):
            origin = dict(found.entry().xattrs).get(_ORIGIN)
            if origin and not stat.S_ISDIR(found.status.st_mode):
                with contextlib.suppress(FileExistsError):  # another name of the same file
                    name = origin.hex()
                    os.link(found.at, name, src_dir_fd=found.directory, dst_dir_fd=to, follow_symlinks=False)
    finally:
        os.close(top)
        os.close(to)
