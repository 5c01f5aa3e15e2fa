"""Key rings in the kernel's keyring of the user, as an agent would keep them: never on a disk, gone after a time.

So who typed a passphrase is not asked again by each verb, and a live program's keeper, which has no terminal, can save.
Where there is no such keyring (many containers forbid the calls) nothing is kept, and nothing found.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

_USER_KEYRING: Final = -4
_CALLS: Final = {"x86_64": (248, 250), "aarch64": (217, 219)}
"""Numbers of add_key and keyctl."""
_REVOKE: Final = 3
_SETPERM: Final = 5
_SEARCH: Final = 10
_READ: Final = 11
_SET_TIMEOUT: Final = 15
_OWNER_ALONE: Final = 0x3F3F0000
"""Possessor and owner: all; group and others: nothing."""
_ROOM: Final = 4096
_KIND: Final = b"user"


def keep(name: str, secret: bytes, seconds: int) -> bool:
    """Keep a secret under a name; whether there is such a keyring. 0 seconds: until it is forgotten."""
    key = _call(0, _KIND, name.encode(), secret, ctypes.c_size_t(len(secret)), ctypes.c_int(_USER_KEYRING))
    if key < 0:
        return False
    _keyctl(_SETPERM, key, _OWNER_ALONE)
    if seconds:
        _keyctl(_SET_TIMEOUT, key, seconds)
    return True


def find(name: str) -> bytes | None:
    """What was kept."""
    key = _search(name)
    if key < 0:
        return None
    room = ctypes.create_string_buffer(_ROOM)
    size = _keyctl(_READ, key, room, _ROOM)
    return room.raw[:size] if 0 <= size <= _ROOM else None


def forget(name: str) -> bool:
    """Whether there was one."""
    key = _search(name)
    return key >= 0 and _keyctl(_REVOKE, key) >= 0


def _search(name: str) -> int:
    return _keyctl(_SEARCH, ctypes.c_int(_USER_KEYRING), _KIND, name.encode(), 0)


def _keyctl(*arguments: object) -> int:
    return _call(1, *arguments)


def _call(which: int, *arguments: object) -> int:
    numbers = _CALLS.get(platform.machine())
    if numbers is None:
        return -1
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(numbers[which], *arguments))
