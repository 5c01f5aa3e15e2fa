"""Opening a userfaultfd as CRIU does in a task that it restores; what a pager is given is open already."""

import ctypes
import fcntl
import os
import struct

from ijfs.live.process import syscalls

_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA

# What criu/uffd.c asks for (NEED_UFFD_API_FEATURES) before it hands a userfaultfd over: events of fork, remap, remove
# and unmap.
CRIU_FEATURES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6

_libc = ctypes.CDLL(None, use_errno=True)


def open_userfaultfd(features: int = CRIU_FEATURES) -> int:
    """A new non-blocking userfaultfd of the calling process."""
    fd: int = _libc.syscall(syscalls.number("userfaultfd"), os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    try:
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, features, 0))
    except OSError:
        os.close(fd)
        raise
    return fd
