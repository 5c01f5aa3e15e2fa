"""The metadata of what an export has made: owners, attributes, modes, times. `export.py` calls it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ijfs_engine.format.records import Entry
from ijfs_engine.util.descent import by_descriptor


class Rights(NamedTuple):
    """What is made of metadata that only root can give."""

    owners: bool
    """Owners, setuid and setgid bits, and attributes beside those of users."""
    devices: bool

    @classmethod
    def of(cls, privileged: bool | None) -> Rights:
        """As asked; by default as this process can, and devices are tried."""
        return cls(os.geteuid() == 0, True) if privileged is None else cls(privileged, privileged)


# Owner, attributes, mode, times: the order in which none undoes another (a chown clears setuid bits).


def set_metadata(where: int | bytes, entry: Entry, rights: Rights) -> None:
    """Of a file or directory: its descriptor, or a path. OSError; OverflowError, ValueError for what cannot be."""
    if rights.owners:
        os.chown(where, entry.uid, entry.gid)
    for name, value in _attributes(entry, rights):
        os.setxattr(where, name, value)
    os.chmod(where, entry.mode if rights.owners else entry.mode & 0o1777)
    os.utime(where, ns=(entry.mtime_ns, entry.mtime_ns))


def set_node_metadata(directory: int, entry: Entry, rights: Rights) -> None:
    """The same for what is not to be opened: a fifo, a socket, a device."""
    handle = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        set_metadata(b"/proc/self/fd/%d" % handle, entry, rights)
    finally:
        os.close(handle)


def set_symlink_metadata(directory: int, entry: Entry, rights: Rights) -> None:
    """Of a symbolic link, which is not followed."""
    if rights.owners:
        os.chown(entry.name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
    for name, value in _attributes(entry, rights):
        os.setxattr(by_descriptor(directory, entry.name), name, value, follow_symlinks=False)
    os.utime(entry.name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)


def _attributes(entry: Entry, rights: Rights) -> Iterator[tuple[bytes, bytes]]:
    return ((name, value) for name, value in entry.xattrs if rights.owners or name.startswith(b"user."))
