"""A path opened below a directory that is its root: no link, `..` or mount of procfs leads out of it (openat2(2)).

Called by client/files.py and sandbox/file_access.py: what a program names its files by is a stranger's word, and ijfs
is root.
"""

from __future__ import annotations

import ctypes
import errno
import os

from ijfs.live.process import syscalls

_RESOLVE_IN_ROOT = 0x10
_RESOLVE_NO_MAGICLINKS = 0x02

_RACES = 50
"""How often a path is resolved again that the program changes meanwhile; the kernel then answers EAGAIN."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how of <linux/openat2.h>."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_below(root: int, path: str | bytes, flags: int, mode: int = 0o666) -> int:
    """Open a path as a program would whose root directory is the descriptor `root`; the new descriptor. OSError."""
    permissions = mode if flags & os.O_CREAT else 0
    how = _OpenHow(flags | os.O_CLOEXEC, permissions, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path) or b"."
    number = ctypes.c_long(syscalls.number("openat2"))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    for _ in range(_RACES):
        found = int(_libc.syscall(number, ctypes.c_int(root), name, ctypes.byref(how), size))
        if found >= 0:
            return found
        code = ctypes.get_errno()
        if code != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), os.fspath(path))
