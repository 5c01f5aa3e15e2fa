"""One seccomp filter: io_uring_setup fails with ENOSYS, and programs fall back to epoll; installed by init.py.

CRIU cannot save an io_uring (the dump fails at its fd), and libuv, uvloop and others open one unasked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from ijfs.live.process import syscalls
from ijfs.live.sandbox import namespaces as ns

# <linux/audit.h>; the number of io_uring_setup is the same on every architecture.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SYS_IO_URING_SETUP = 425

# <linux/seccomp.h>, <linux/bpf_common.h>
SECCOMP_SET_MODE_FILTER = 1
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
OFFSET_NUMBER, OFFSET_ARCH = 0, 4


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def refuse_io_uring() -> None:
    """Install the filter for this process and all its children. Raises OSError where seccomp is missing.

    The caller is root; NO_NEW_PRIVS, which others would need, is rights.py's.
    """
    machine = os.uname().machine
    code = b"".join(
        [
            _instruction(LOAD_WORD, OFFSET_ARCH),
            _instruction(JUMP_IF_EQUAL, AUDIT_ARCH[machine], 0, 2),
            _instruction(LOAD_WORD, OFFSET_NUMBER),
            _instruction(JUMP_IF_EQUAL, SYS_IO_URING_SETUP, 1, 0),
            _instruction(RETURN, RET_ALLOW),
            _instruction(RETURN, RET_ERRNO | errno.ENOSYS),
        ]
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    ns.syscall(syscalls.number("seccomp"), SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(program))
