"""Mounting with the kernel's help: the descriptor of /dev/fuse that a filesystem is served through. Called by serve.py.

As root in a namespace of one's own by mount(2). Else by fusermount3, which is allowed to where an ordinary user is not,
and can stay to take the mount away when this process dies.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from ijfs_engine.errors import StorageError

_TYPE: Final = "ijfs"
_RDONLY, _NOSUID, _NODEV, _DETACH = 1, 2, 4, 2
_HINT: Final = "`ijfs doctor` checks /dev/fuse and fusermount3"


class FuseMount:
    """A mount that was made: `fd` is for requests and replies, and the session's to close."""

    def __init__(self, fd: int, mountpoint: Path, keeper: socket.socket | None = None) -> None:
        self.fd = fd
        self._mountpoint = mountpoint
        self._keeper = keeper

    def unmount(self) -> None:
        """Take it away, lazily: a program that still stands in it keeps what it has open and gets ENOTCONN from then
        on. Done already is fine."""
        if os.geteuid() == 0:
            ctypes.CDLL(None).umount2(os.fsencode(self._mountpoint), _DETACH)
        else:
            with suppress(OSError):
                subprocess.run(
                    ["fusermount3", "-uqz", "--", os.fspath(self._mountpoint)], capture_output=True, check=False
                )
        if self._keeper is not None:
            self._keeper.close()


def mount_directly(mountpoint: Path, source: str) -> FuseMount:
    """By mount(2): needs root. StorageError."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(mountpoint, f"/dev/fuse: {error.strerror}") from error
    mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
    options = f"fd={fd},rootmode={mode:o},user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    mount = ctypes.CDLL(None, use_errno=True).mount
    mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
    flags = _RDONLY | _NOSUID | _NODEV
    if mount(os.fsencode(source), os.fsencode(mountpoint), f"fuse.{_TYPE}".encode(), flags, options.encode()) != 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise _refused(mountpoint, os.strerror(code))
    return FuseMount(fd, mountpoint)


def mount_for_users(mountpoint: Path, source: str, *, allow_other: bool) -> FuseMount:
    """By fusermount3, which stays and takes the mount away when this process has died. StorageError."""
    options = ["ro", "default_permissions", "auto_unmount", f"fsname={_escaped(source)}", f"subtype={_TYPE}"]
    options += ["allow_other"] if allow_other else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with closing(theirs):
            helper = subprocess.Popen(
                ["fusermount3", "-o", ",".join(options), "--", os.fspath(mountpoint)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    except OSError as error:
        ours.close()
        raise _refused(mountpoint, str(error)) from error
    assert helper.stderr is not None
    if not fds:
        ours.close()
        _, said = helper.communicate()
        raise _refused(mountpoint, said.decode(errors="replace").strip() or "fusermount3 ended without a word")
    helper.stderr.close()
    # It stays for as long as the mount does, and is nobody's child to wait for.
    helper.returncode = 0
    os.set_inheritable(fds[0], False)
    return FuseMount(fds[0], mountpoint, ours)


def _refused(mountpoint: Path, why: str) -> StorageError:
    return StorageError(f"cannot mount at {mountpoint}: {why}", hint=_HINT)


def _escaped(source: str) -> str:
    """fusermount3 splits its options at commas and takes a backslash as an escape."""
    return source.replace("\\", "\\\\").replace(",", "\\,")
