"""Sockets and pipes of a program that lead out of it, and sockets of kinds that CRIU does not know; only by looking.

Called by blockers.py. A socket is asked by a borrowed descriptor: what /proc/net lists has no unbound ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ijfs.live.checks.result import CheckResult
from ijfs.live.process import descriptors, procfs

_SIOCGSKNS = 0x894C  # the network namespace that a socket is of; linux/sockios.h
_SO_PROTOCOL, _SO_DOMAIN = 38, 39
_IPPROTO_MPTCP, _IPPROTO_UDPLITE = 262, 136

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)
_STREAMS = (0, socket.IPPROTO_TCP)
_DATAGRAMS = (0, socket.IPPROTO_UDP, _IPPROTO_UDPLITE)

_CLOSE = "close it in the program"


def of_program(pid: int) -> Iterator[CheckResult]:
    """What is found in `pid` and its descendants, which are what a save takes."""
    members = frozenset((pid, *procfs.descendants(pid)))
    network = procfs.namespace_id(pid, "net")
    for member in sorted(members):
        for number in _numbers(member, "socket:"):
            what = _against(member, number, network, members)
            if what:
                evidence = f"process {member} ({procfs.name_of(member)}): file descriptor {number} is {what}"
                yield CheckResult(check="socket", outcome="refuse", evidence=evidence, remedy=_CLOSE)
    yield from _shared_pipes(members)


def _against(pid: int, number: int, network: int, members: frozenset[int]) -> str:
    """What keeps a socket from being saved; "" where nothing is known."""
    try:
        with socket.socket(fileno=descriptors.borrowed(pid, number)) as sock:
            return _strange_kind(sock) or _of_another_network(sock, network) or _outside_peer(sock, members)
    except OSError:
        return ""  # it was closed meanwhile, or its kind cannot be asked


def _strange_kind(sock: socket.socket) -> str:
    family = sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
    if family not in _FAMILIES:
        return f"a socket of the family {_family_name(family)}, which CRIU does not know"
    kind, protocol = (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL),
    )
    known: dict[int, tuple[int, ...]] = {socket.SOCK_STREAM: _STREAMS, socket.SOCK_DGRAM: _DATAGRAMS}
    if family in (socket.AF_INET, socket.AF_INET6) and protocol not in known.get(kind, (protocol,)):
        name = "multipath TCP" if protocol == _IPPROTO_MPTCP else f"protocol {protocol}"
        return f"a socket of {name}, which CRIU does not know"
    return ""


def _family_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return socket.AddressFamily(number).name
    return str(number)


def _of_another_network(sock: socket.socket, network: int) -> str:
    try:
        namespace = fcntl.ioctl(sock, _SIOCGSKNS)
    except OSError:
        return ""  # a kernel that does not say it
    try:
        return "" if os.fstat(namespace).st_ino == network else "a socket of a network outside its sandbox"
    finally:
        os.close(namespace)


def _outside_peer(sock: socket.socket, members: frozenset[int]) -> str:
    """The other end of a Unix connection, by the process that made it: one that has ended left it to some other."""
    if sock.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) != socket.AF_UNIX:
        return ""
    try:
        sock.getpeername()
    except OSError:
        return ""  # it is not connected
    peer: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    if peer <= 0 or peer in members or not Path(f"/proc/{peer}").exists():
        return ""
    return f"connected to process {peer} ({procfs.name_of(peer)}), which is no part of the program"


def _shared_pipes(members: frozenset[int]) -> Iterator[CheckResult]:
    """Pipes that somebody else has an end of: a save takes the program's end alone."""
    mine = {link: pid for pid in sorted(members) for link in _links(pid, "pipe:")}
    if not mine:
        return
    for other in map(int, filter(str.isdigit, os.listdir("/proc"))):
        for link in _links(other, "pipe:") if other not in members else ():
            if (pid := mine.pop(link, None)) is not None:
                evidence = f"process {pid} ({procfs.name_of(pid)}) shares a pipe with process {other} "
                evidence += f"({procfs.name_of(other)}), which is no part of the program"
                remedy = f"in what comes back nobody is at the other end: {_CLOSE}"
                yield CheckResult(check="pipe", outcome="warn", evidence=evidence, remedy=remedy)


def _numbers(pid: int, kind: str) -> list[int]:
    return sorted(number for number, link in _descriptors(pid) if link.startswith(kind))


def _links(pid: int, kind: str) -> set[str]:
    return {link for _, link in _descriptors(pid) if link.startswith(kind)}


def _descriptors(pid: int) -> Iterable[tuple[int, str]]:
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield int(number), os.readlink(f"/proc/{pid}/fd/{number}")
