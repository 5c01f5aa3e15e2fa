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
from ijfs.live.sandbox import netlink

# <linux/rtnetlink.h>, <linux/pkt_sched.h>
_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_TCA_KIND = 1
_ROOT = 0xFFFFFFFF

_TCMSG = struct.Struct("=BxxxiIII")
_BLACKHOLE = netlink.attribute(_TCA_KIND, b"blackhole\0")
# A kernel without queueing disciplines, or without this one.
_UNKNOWN = (errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL)


class Silence:
    """Silence in a network namespace, from when it is made until `end`. Where the kernel has no such queue, nothing
    happens, and `holds` is False."""

    def __init__(self, network_fd: int) -> None:
        self._network_fd = network_fd
        self._devices: list[int] = []
        with ns.in_network(network_fd):
            for index, _ in socket.if_nameindex():
                if _swallow(index):
                    self._devices.append(index)
        self.holds = bool(self._devices)

    def end(self) -> None:
        """Every device has its own queue again. May be called twice. OSError."""
        devices, self._devices = self._devices, []
        if devices:
            with ns.in_network(self._network_fd):
                for index in devices:
                    with contextlib.suppress(FileNotFoundError):
                        netlink.ask(_RTM_DELQDISC, 0, _of(index))


def _swallow(device: int) -> bool:
    """Whether the device swallows what is sent from now on. OSError."""
    try:
        netlink.ask(_RTM_NEWQDISC, netlink.CREATE | netlink.REPLACE, _of(device) + _BLACKHOLE)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return False
        raise
    return True


def _of(device: int) -> bytes:
    return _TCMSG.pack(socket.AF_UNSPEC, device, 0, _ROOT, 0)
