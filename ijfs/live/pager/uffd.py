"""The userfaultfd seam: the ioctls and messages of the kernel interface that the pager uses, and nothing else.

Called by `space` and the tests. Filling pages (UFFDIO_COPY, UFFDIO_POISON) is filling.pyx's. Semantics were taken
from fs/userfaultfd.c and mm/userfaultfd.c of Linux 6.18 and are checked against the running kernel in
tests/live/test_pager_uffd.py.

ctypes and not `fcntl.ioctl`: the result field of a *failed* UFFDIO_ZEROPAGE says how far it came.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from enum import IntEnum
from typing import Final

# linux/userfaultfd.h: _IOC(dir, 0xAA, nr, size)
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_UNREGISTER: Final = 0x8010AA01
_UFFDIO_WAKE: Final = 0x8010AA02
_UFFDIO_ZEROPAGE: Final = 0xC020AA04
_REGISTER_MODE_MISSING: Final = 1

EVENT_PAGEFAULT: Final = 0x12
EVENT_FORK: Final = 0x13
EVENT_REMAP: Final = 0x14
EVENT_REMOVE: Final = 0x15
EVENT_UNMAP: Final = 0x16

MESSAGE: Final = struct.Struct("<B7xQQQ")  # struct uffd_msg: event, then three words that depend on it
"""(event, a, b, c): PAGEFAULT flags, address, thread · FORK fd · REMAP from, to, length · REMOVE/UNMAP start, end."""


class RangeOutcome(IntEnum):
    """How far an operation on a range came, and what the caller has to do about the rest."""

    DONE = 0
    """The whole range was handled."""
    EXISTS = 1
    """The page after the handled part is already there: skip it, it is right."""
    CHANGING = 2
    """EAGAIN: the program changes its mappings; read the event that says how, then try the rest again."""
    NOT_MAPPED = 3
    """ENOENT: the rest lies in no one registered mapping: gone, or a boundary runs through it."""
    GONE = 4
    """ESRCH: the whole address space is gone (exit, exec)."""
    NO_MEMORY = 5
    """ENOMEM or a refused cgroup charge: try again later."""
    INTERRUPTED = 6
    """Whoever wants to read events goes first: try the rest again at once."""


_OUTCOMES: Final = {
    errno.EEXIST: RangeOutcome.EXISTS,
    errno.EAGAIN: RangeOutcome.CHANGING,
    errno.ENOENT: RangeOutcome.NOT_MAPPED,
    errno.ESRCH: RangeOutcome.GONE,
    errno.ENOSPC: RangeOutcome.GONE,  # what kernels before 5.2 answered for an address space that is going away
    errno.ENOMEM: RangeOutcome.NO_MEMORY,
}

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_ioctl.restype = ctypes.c_int


class _Arguments(ctypes.Structure):
    """Five words: enough for every ioctl here; which word means what is beside each call."""

    _fields_ = (("w", ctypes.c_int64 * 5),)


class Uffd:
    """One userfaultfd, that is: one address space of a program that is being paged in.

    Not thread-safe: for the one thread that reads events.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._arguments = _Arguments()
        self._words = self._arguments.w
        self._address = ctypes.addressof(self._arguments)

    def close(self) -> None:
        """Give up this reference. With the last one the kernel unregisters every range and wakes every waiter."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def zero(self, start: int, length: int) -> tuple[int, RangeOutcome]:
        """Map the kernel's zero page over missing pages: (bytes that were mapped, outcome)."""
        words = self._words
        words[0], words[1], words[2], words[3] = start, length, 0, 0
        if _ioctl(self.fd, _UFFDIO_ZEROPAGE, self._address) == 0:
            return length, RangeOutcome.DONE
        if words[3] > 0:  # it came this far; why it stopped is what the next call on the rest will say
            return words[3], RangeOutcome.DONE
        outcome = _OUTCOMES.get(ctypes.get_errno())
        if outcome is None:
            raise _os_error("UFFDIO_ZEROPAGE")
        return 0, outcome

    def wake(self, start: int, length: int) -> None:
        """Let everyone who waits for a page in this range look again. The range need not be mapped."""
        self._words[0], self._words[1] = start, length
        if _ioctl(self.fd, _UFFDIO_WAKE, self._address):
            raise _os_error("UFFDIO_WAKE")

    def register(self, start: int, length: int) -> None:
        """Ask for faults on missing pages of this range of the process that opened the userfaultfd."""
        words = self._words
        words[0], words[1], words[2], words[3] = start, length, _REGISTER_MODE_MISSING, 0
        if _ioctl(self.fd, _UFFDIO_REGISTER, self._address):
            raise _os_error("UFFDIO_REGISTER")

    def unregister(self, start: int, length: int) -> bool:
        """Let the kernel answer this range's faults again; False where nothing (suitable) is mapped any more."""
        self._words[0], self._words[1] = start, length
        if _ioctl(self.fd, _UFFDIO_UNREGISTER, self._address) == 0:
            return True
        if ctypes.get_errno() in (errno.EINVAL, errno.ENOMEM, errno.ESRCH):
            return False
        raise _os_error("UFFDIO_UNREGISTER")


def _os_error(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")
