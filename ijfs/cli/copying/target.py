"""Where `ijfs cp` writes: below an open directory, by descriptors, each file under its name only when it is whole.

A link that stands where a directory is to go is refused, and one where a file is to go is replaced: what is copied may
hold the link that a later file of the same copy would be written through.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ijfs.cli import text
from ijfs.cli.copying.source import Node, is_whiteout
from ijfs_engine.errors import IjfsError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PERMISSIONS = 0o777
"""Of a mode: a program's setuid bits mean nothing outside its sandbox, or too much."""


@dataclass
class Copied:
    """What a copy came to."""

    files: int = 0
    bytes: int = 0
    left_out: int = 0
    """Sockets, pipes and devices."""


@dataclass
class _Open:
    """A directory being copied: what is left of it, where it goes, and what it is to look like when it is complete."""

    children: Iterator[Node]
    fd: int
    source: Node | None = None
    made: bool = False

    def leave(self, top: Node) -> None:
        """It is complete: one that was made here gets its mode and time."""
        if self.source is None:
            return
        entry = self.source.entry
        if self.made:
            os.fchmod(self.fd, entry.mode & PERMISSIONS)
            os.utime(self.fd, ns=(entry.mtime_ns, entry.mtime_ns))
        os.close(self.fd)
        if self.source is not top:
            self.source.close()


def copy(node: Node, parent: int, name: bytes, done: Copied) -> None:
    """Copy a file or a whole directory to that name in a directory. IjfsError, OSError: what is whole stays."""
    stack = [_Open(iter((node,)), parent)]
    try:
        while stack:
            child = next(stack[-1].children, None)
            if child is None:
                stack.pop().leave(node)
                continue
            at = name if len(stack) == 1 else child.entry.name
            if child.entry.kind == "d":
                stack.append(_directory(child, stack[-1].fd, at))
                continue
            _one(child, stack[-1].fd, at, done)
            if child is not node:
                child.close()
    finally:
        for rest in stack[1:]:
            os.close(rest.fd)


def _one(node: Node, parent: int, name: bytes, done: Copied) -> None:
    """Copy one entry that is no directory."""
    if node.entry.kind == "f":
        _file(node, parent, name)
        done.files += 1
        done.bytes += node.entry.size
    elif node.entry.kind == "l":
        _replace(parent, name, lambda temporary: _link(node, parent, temporary))
        done.files += 1
    elif not is_whiteout(node.entry):
        done.left_out += 1


def _directory(node: Node, parent: int, name: bytes) -> _Open:
    made = True
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        made = False
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        shown = text.printable(os.fsdecode(name))
        raise IjfsError(
            f"'{shown}' is no directory where the copy goes, and is not written through", hint="move it away first"
        ) from error
    if made:
        _give(fd, parent)
    return _Open(node.children(), fd, node, made)


def _give(fd: int, parent: int) -> None:
    """What root copies belongs to whose directory it goes into, and not to root."""
    if os.geteuid() == 0:
        owner = os.fstat(parent)
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _link(node: Node, parent: int, name: bytes) -> None:
    os.symlink(node.entry.target, name, dir_fd=parent)
    if os.geteuid() == 0:
        owner = os.fstat(parent)
        os.chown(name, owner.st_uid, owner.st_gid, dir_fd=parent, follow_symlinks=False)


def _file(node: Node, parent: int, name: bytes) -> None:
    def write(temporary: bytes) -> None:
        fd = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        with open(fd, "wb", closefd=True) as file:
            for at, data in node.pieces():
                file.seek(at)
                file.write(data)
            file.flush()
            os.ftruncate(fd, max(node.entry.size, os.fstat(fd).st_size))
            _give(fd, parent)
            os.fchmod(fd, node.entry.mode & PERMISSIONS)
            os.utime(fd, ns=(node.entry.mtime_ns, node.entry.mtime_ns))

    _replace(parent, name, write)


def _replace(parent: int, name: bytes, make: Callable[[bytes], None]) -> None:
    """Have something made under a name of its own, which then takes the place of what has this one."""
    temporary = b".ijfs-cp-%b.part" % secrets.token_hex(6).encode()
    try:
        make(temporary)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except IsADirectoryError as error:
        shown = text.printable(os.fsdecode(name))
        raise IjfsError(f"'{shown}' is a directory where the copy goes", hint="move it away first") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
