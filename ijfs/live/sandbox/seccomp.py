"""The seccomp filter of a sandbox: what would stop a save, and what reaches past the sandbox. Installed by init.py for
the program, and by enter.py for what is run in it.

`io_uring_setup` fails with ENOSYS, and programs fall back to epoll: CRIU cannot save an io_uring, and libuv, uvloop and
others open one unasked. Without --privileged three more things are refused:

- A user namespace. A program has all rights in one that it makes: it could mount control groups and lift its limits,
  and those of others on the machine. (It could not be saved either.) `clone3` fails with ENOSYS, because a filter
  cannot see its flags; the C library then takes `clone`.
- The kernel's keys (`keyctl` and its like). They belong to a user, not to a sandbox: root's are there for every program
  that runs as root, those of encrypted repositories too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final, NamedTuple

from ijfs.live.process import syscalls
from ijfs.live.sandbox import namespaces as ns


class _Numbers(NamedTuple):
    """Of the calls of one kind of program: what they are called by, and how the kernel names it (<linux/audit.h>)."""

    audit: int
    io_uring_setup: int
    clone3: int
    keys: tuple[int, ...]
    flags_first: tuple[int, ...]
    """Calls whose first argument are flags of namespaces: unshare, clone."""


_X86_64: Final = _Numbers(0xC000003E, 425, 435, (248, 249, 250), (272, 56))
_I386: Final = _Numbers(0x40000003, 425, 435, (286, 287, 288), (310, 120))
_AARCH64: Final = _Numbers(0xC00000B7, 425, 435, (217, 218, 219), (97, 220))
_ARM: Final = _Numbers(0x40000028, 425, 435, (309, 310, 311), (337, 120))
_KINDS: Final = {"x86_64": (_X86_64, _I386), "aarch64": (_AARCH64, _ARM)}
"""By machine: its own programs, and those of 32 bits that it runs as well."""

_CLONE_NEWUSER: Final = 0x10000000
_X32: Final = 0x40000000
"""Numbers from here on are of a third kind of program on x86_64, which hardly any kernel runs."""

# <linux/seccomp.h>, <linux/bpf_common.h>
SECCOMP_SET_MODE_FILTER: Final = 1
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_FIRST_ARGUMENT = 0, 4, 16


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refused(number: int, error: int) -> bytes:
    """This call fails."""
    return _instruction(JUMP_IF_EQUAL, number, 0, 1) + _instruction(RETURN, RET_ERRNO | error)


def _refused_with_user_namespace(number: int) -> bytes:
    """This call fails where its flags ask for one."""
    return b"".join(
        [
            _instruction(JUMP_IF_EQUAL, number, 0, 4),
            _instruction(LOAD_WORD, OFFSET_FIRST_ARGUMENT),
            _instruction(JUMP_IF_SET, _CLONE_NEWUSER, 0, 1),
            _instruction(RETURN, RET_ERRNO | errno.EPERM),
            _instruction(RETURN, RET_ALLOW),
        ]
    )


def _of_kind(kind: _Numbers, *, io_uring: bool, privileged: bool) -> bytes:
    """What programs of one kind may not do; then it returns. Others go on behind it."""
    body = _instruction(LOAD_WORD, OFFSET_NUMBER)
    if kind is _X86_64:
        body += _instruction(JUMP_IF_AT_LEAST, _X32, 0, 1) + _instruction(RETURN, RET_ERRNO | errno.ENOSYS)
    if not io_uring:
        body += _refused(kind.io_uring_setup, errno.ENOSYS)
    if not privileged:
        body += _refused(kind.clone3, errno.ENOSYS)
        body += b"".join(_refused(number, errno.EPERM) for number in kind.keys)
        body += b"".join(_refused_with_user_namespace(number) for number in kind.flags_first)
    body += _instruction(RETURN, RET_ALLOW)
    return _instruction(JUMP_IF_EQUAL, kind.audit, 0, len(body) // 8) + body


def restrict(*, io_uring: bool, privileged: bool) -> None:
    """Install the filter for this process and all its children. Raises OSError where seccomp is missing.

    The caller is root; NO_NEW_PRIVS, which others would need, is rights.py's.
    """
    if io_uring and privileged:
        return
    kinds = _KINDS.get(os.uname().machine, ())
    code = _instruction(LOAD_WORD, OFFSET_ARCH)
    code += b"".join(_of_kind(kind, io_uring=io_uring, privileged=privileged) for kind in kinds)
    code += _instruction(RETURN, RET_ALLOW)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    ns.syscall(syscalls.number("seccomp"), SECCOMP_SET_MODE_FILTER, 0, ctypes.addressof(program))
