"""What root may not do in a sandbox, where its program was not started `--privileged`.

Capabilities that change the machine and no sandbox are taken away from everything in it, for good (the bounding set),
no program gains rights by being run (no_new_privs), and what of /proc and /sys is the whole machine's is read-only.
CRIU saves and restores all of that with the program, so a snapshot from before comes back with what it had, and what
`ijfs exec` runs beside a program gets the same as that. docs/security.md has the table of what was tried.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from ijfs.live.sandbox import namespaces as ns

# <linux/capability.h>
CAPABILITIES = {
    "DAC_READ_SEARCH": 2,  # files of the machine by their handles, past every mount (open_by_handle_at)
    "LINUX_IMMUTABLE": 9,
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_PACCT": 20,
    "SYS_ADMIN": 21,  # mounts: of control groups, whose release_agent runs outside; what is read-only is so by one
    "SYS_BOOT": 22,
    "SYS_TIME": 25,
    "SYS_TTY_CONFIG": 26,
    "MKNOD": 27,  # the machine's disks, as a device of its own
    "AUDIT_CONTROL": 30,
    "MAC_OVERRIDE": 32,
    "MAC_ADMIN": 33,
    "SYSLOG": 34,
    "WAKE_ALARM": 35,
    "BLOCK_SUSPEND": 36,
    "AUDIT_READ": 37,
    "PERFMON": 38,
    "BPF": 39,
    "CHECKPOINT_RESTORE": 40,
}
"""Those that a sandbox does not have. It keeps what works on its own: its users, files, processes, network."""

OVER_THE_NETWORK = {"NET_ADMIN": 12, "NET_RAW": 13}
"""Those, too, where the sandbox's own network restricts what it may connect to (egress.py): they change the rules, and
pass them."""

READ_ONLY = ("proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/fs", "proc/bus", "sys")
"""What is the whole machine's, whoever looks at it."""

# <linux/prctl.h>, <linux/capability.h>
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
VERSION_3 = 0x20080522
WORDS = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Rights(NamedTuple):
    """A bounding set (a bit for each capability), and whether programs gain nothing by being run."""

    bounding: int
    no_new_privs: bool


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def of(pid: int | str = "self") -> Rights:
    """Those of a process. OSError where it is gone."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return Rights(int(status["CapBnd"], 16), status.get("NoNewPrivs", "0").strip() == "1")


def of_a_sandbox(*, filtered: bool = False) -> Rights:
    """What is left to the program of a sandbox of what this process has; `filtered`: of one whose connections are."""
    numbers = [*CAPABILITIES.values(), *(OVER_THE_NETWORK.values() if filtered else ())]
    taken = sum(1 << number for number in numbers)
    return Rights(of().bounding & ~taken, no_new_privs=True)


def restrict(rights: Rights) -> None:
    """Leave these to the calling process, which has one thread, and to all that it becomes. OSError."""
    number = 0
    own = of().bounding
    while own >> number:
        if own >> number & 1 and not rights.bounding >> number & 1:
            ns.prctl(PR_CAPBSET_DROP, number)
        number += 1
    header, sets = _Header(VERSION_3, 0), (_Sets * WORDS)()
    _checked(_libc.capget(ctypes.byref(header), sets))
    for word, held in enumerate(sets):
        kept = rights.bounding >> 32 * word & 0xFFFFFFFF
        held.effective, held.permitted, held.inheritable = (
            held.effective & kept,
            held.permitted & kept,
            held.inheritable & kept,
        )
    _checked(_libc.capset(ctypes.byref(header), sets))
    if rights.no_new_privs:
        ns.prctl(PR_SET_NO_NEW_PRIVS, 1)


def protect_machine(root: Path) -> None:
    """In a sandbox's mounts below `root`: what is the whole machine's, read-only."""
    flags = ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    for name in READ_ONLY:
        path = root / name
        if path.exists():
            if not path.is_mount():
                ns.bind(path, path)
            ns.mount("none", path, "", flags)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capabilities: {os.strerror(code)}")
