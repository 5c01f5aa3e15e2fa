"""What of a program comes back other than it was, and can be put back by nobody but the program; only by looking.

Called by blockers.py: `ijfs doctor NAME` and the save's warnings say it.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ijfs.live.checks.result import CheckResult
from ijfs.live.process import procfs

_SEALED = b" sl"
"""Among the flags of a mapping (proc_pid_smaps(5), VmFlags): mseal(2)."""

_LARGEST = 2 << 30
"""A process with more memory than so is not looked at for sealed one: the kernel takes a second for 100 GB."""

_OF_EVERY_HOST = {"224.0.0.1", "ff02::1", "ff01::1"}
_MOST_NAMES = 5


def of_program(pid: int, members: Iterable[int]) -> Iterator[CheckResult]:
    """A warning for each kind of thing; `members`: the processes of the program of `pid`."""
    sealed = [f"{procfs.name_of(member)} (process {member})" for member in members if _has_sealed_memory(member)]
    if sealed:
        evidence = f"memory that is sealed against changes (mseal) is not sealed in a copy: {_some(sealed)}"
        yield CheckResult(check="memory", outcome="warn", evidence=evidence, remedy="seal it there again")
    groups = _multicast_groups(pid)
    if groups:
        evidence = f"memberships in multicast groups are lost in a copy: {_some(groups)}"
        yield CheckResult(check="multicast", outcome="warn", evidence=evidence, remedy="join them there again")


def _has_sealed_memory(pid: int) -> bool:
    if procfs.dumpable_bytes(pid) > _LARGEST:
        return False
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps").read_bytes().splitlines()
        # The kernel's own pages are sealed in every process, where it was built so.
        return any(_SEALED in line and not own for line, own in _flags(lines))
    return False


def _flags(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The flags of each mapping, and whether it is one of the kernel's."""
    own = False
    for line in lines:
        if line.startswith(b"VmFlags:"):
            yield line, own
        elif not line.split(b" ", 1)[0].endswith(b":"):
            own = line.endswith((b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]", b"[sigpage]"))


def _multicast_groups(pid: int) -> list[str]:
    """Those that a program's sockets have joined. Of IPv6 the kernel joins some for each address by itself: those of
    one link are left out."""
    return [*_groups_of_ip4(pid), *_groups_of_ip6(pid)]


def _groups_of_ip4(pid: int) -> Iterator[str]:
    """Lines that begin with tabs: the group as a number of this machine, users, timer (net/ipv4/igmp.c)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/igmp").read_text().splitlines():
            if line.startswith("\t"):
                group = socket.inet_ntoa(int(line.split()[0], 16).to_bytes(4, sys.byteorder))
                if group not in _OF_EVERY_HOST:
                    yield group


def _groups_of_ip6(pid: int) -> Iterator[str]:
    """Device number, device, group, users (net/ipv6/mcast.c)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/igmp6").read_text().splitlines():
            group = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[2]))
            if group not in _OF_EVERY_HOST and not group.startswith(("ff02::1:ff", "ff02::2", "ff01::2", "ff05::2")):
                yield group


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (", …" if names[_MOST_NAMES:] else "")
