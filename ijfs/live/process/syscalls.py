"""Numbers of the system calls that the C library has no function for. Called by pager, sandbox, doctor, scheduling,
root_paths, disk."""

from __future__ import annotations

import os
from typing import Final, Literal

Name = Literal[
    "clone",
    "fsconfig",
    "fsmount",
    "fsopen",
    "ioprio_get",
    "ioprio_set",
    "openat2",
    "pidfd_getfd",
    "pivot_root",
    "rt_sigaction",
    "seccomp",
    "userfaultfd",
]

_NUMBERS: Final[dict[str, dict[Name, int]]] = {
    "x86_64": {
        "clone": 56,
        "fsconfig": 431,
        "fsmount": 432,
        "fsopen": 430,
        "ioprio_get": 252,
        "ioprio_set": 251,
        "openat2": 437,
        "pidfd_getfd": 438,
        "pivot_root": 155,
        "rt_sigaction": 13,
        "seccomp": 317,
        "userfaultfd": 323,
    },
    "aarch64": {
        "clone": 220,
        "fsconfig": 431,
        "fsmount": 432,
        "fsopen": 430,
        "ioprio_get": 31,
        "ioprio_set": 30,
        "openat2": 437,
        "pidfd_getfd": 438,
        "pivot_root": 41,
        "rt_sigaction": 134,
        "seccomp": 277,
        "userfaultfd": 282,
    },
}

MACHINES: Final = frozenset(_NUMBERS)
"""Machines that these numbers are known for, as `uname` names them."""


def number(name: Name) -> int:
    """The number of this call here; -1, to which every kernel answers ENOSYS, on a machine of another kind."""
    return _NUMBERS.get(os.uname().machine, {}).get(name, -1)
