"""A sandbox's network in which nothing arrives, for a while; called by checkpoint/restore.py.

CRIU gives a TCP connection the part of its send queue that had never been sent by really sending it, while the other
end may not be there yet. What arrives then is answered by a reset, and the restore ends (`Can't restore not-sent send
queue data: Broken pipe`). So every device of the network namespace gets a queue that swallows what is sent, the
kernel's `blackhole` qdisc, until all sockets are there; TCP sends again what got lost. A link that is down would not
do: CRIU connects the sockets, which needs a route. A DROP rule would, where the kernel and the machine have netfilter
and its programs; the qdisc is in every kernel with CONFIG_NET_SCHED, takes 0.1 ms and needs no program.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

from ijfs.live.sandbox import namespaces as ns

# <linux/rtnetlink.h>, <linux/netlink.h>, <linux/pkt_sched.h>
_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_TCA_KIND = 1
_ROOT = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_KIND = b"blackhole\0"


class Silence:
    """Silence in a network namespace, from when it is made until `end`. Where the kernel has no such queue, nothing
    happens, and `holds` is False."""

    def __init__(self, network_fd: int) -> None:
        self._network_fd = network_fd
        self._devices: list[int] = []
        with ns.in_network(network_fd):
            for index, _ in socket.if_nameindex():
                if _ask(_RTM_NEWQDISC, _CREATE | _REPLACE, index, _KIND):
                    self._devices.append(index)
        self.holds = bool(self._devices)

    def end(self) -> None:
        """Every device has its own queue again. May be called twice. OSError."""
        devices, self._devices = self._devices, []
        if devices:
            with ns.in_network(self._network_fd):
                for index in devices:
                    with contextlib.suppress(FileNotFoundError):
                        _ask(_RTM_DELQDISC, 0, index, b"")


def _ask(kind: int, flags: int, device: int, qdisc: bytes) -> bool:
    """One request to the kernel about a device's root queue; False where this kernel cannot do it. OSError."""
    attribute = struct.pack("=HH", 4 + len(qdisc), _TCA_KIND) + qdisc + bytes(-len(qdisc) % 4) if qdisc else b""
    body = _TCMSG.pack(socket.AF_UNSPEC, device, 0, _ROOT, 0) + attribute
    message = _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST | _ACK, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.sendall(message)
        answer = sock.recv(4096)
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    if code in (errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL) and kind == _RTM_NEWQDISC:
        return False
    if code:
        raise OSError(code, f"the queue of network device {device}")
    return True
