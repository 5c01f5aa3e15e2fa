"""What a program changed in its sandbox's network, taken at a save and put back before a restore.

Addresses, routes and rules are kept as the kernel's own messages about them, which it takes as requests too (as
`ip addr save` and `ip route restore` do). Of the settings below /proc/sys/net those are kept that are not as in a new
network. Devices that the program made are not: `capture` names them. Called by keeper/save.py, checkpoint/restore.py.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import netlink

# <linux/rtnetlink.h>
_NEW_ADDRESS, _GET_ADDRESS, _NEW_ROUTE, _GET_ROUTE, _NEW_RULE, _GET_RULE = 20, 22, 24, 26, 32, 34
_ROUTE_HEAD, _ROUTE_DEVICE = 12, 4  # struct rtmsg; RTA_OIF
_ADDRESS_HEAD, _ADDRESS_DEVICE, _LIFETIMES = 8, 4, 6  # struct ifaddrmsg, its ifa_index; IFA_CACHEINFO
_ADDRESS, _LOCAL = 1, 2  # IFA_
_PERMANENT = 0x80  # IFA_F_PERMANENT: not one that a router announced
_BY_KERNEL, _BY_ROUTER = 2, 9  # RTPROT_: those come with an address, or by themselves
_CLONED = 0x200  # RTM_F_CLONED: an entry of a cache

# What every sandbox has, and what slirp4netns gives it.
_OWN_DEVICES = ("lo", "tap0")
# Devices that some kernels put into each new network.
_FALLBACK = ("tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0")

_SETTINGS = Path("/proc/sys/net")
# Where settings of a network stand, without those of devices that come and go, and of neighbours.
_PLACES = (
    "core",
    "unix",
    "ipv4",
    "ipv6",
    *(f"{v}/conf/{of}" for v in ("ipv4", "ipv6") for of in ("all", "default", "lo")),
)


class NetworkState(msgspec.Struct, frozen=True, kw_only=True):
    """`addresses`, `routes`: (device, the kernel's message). `rules`: messages. `settings`: by paths below
    /proc/sys/net."""

    addresses: tuple[tuple[str, bytes], ...] = ()
    routes: tuple[tuple[str, bytes], ...] = ()
    rules: tuple[bytes, ...] = ()
    settings: dict[str, str] = {}


def capture(network_fd: int) -> tuple[NetworkState, dict[str, list[bytes]]]:
    """(what is to be put back, the devices that cannot be, with their addresses, packed). OSError."""
    bare = _bare()
    with ns.in_network(network_fd):
        names = dict(socket.if_nameindex())
        now = _everything(names)
        lost: dict[str, list[bytes]] = {name: [] for name in names.values() if name not in (*_OWN_DEVICES, *_FALLBACK)}
        for device, address in _every_address(names) if lost else ():
            lost.get(device, []).append(address)
    state = NetworkState(
        addresses=tuple(address for address in now.addresses if address not in bare.addresses),
        routes=tuple(route for route in now.routes if route not in bare.routes),
        rules=tuple(rule for rule in now.rules if rule not in bare.rules),
        settings={path: value for path, value in now.settings.items() if bare.settings.get(path, value) != value},
    )
    return state, lost


def put_back(network_fd: int, state: NetworkState) -> None:
    """Make a new network like the one that was captured. What this kernel refuses stays as it is: CRIU says whether the
    program can do without."""
    with ns.in_network(network_fd):
        for path, value in filter(_is_setting, state.settings.items()):
            with contextlib.suppress(OSError):
                (_SETTINGS / path).write_text(value)
        indexes = {name: index for index, name in socket.if_nameindex()}
        for device, message in state.addresses:
            if device in indexes:
                _ask(_NEW_ADDRESS, _at(message, _ADDRESS_DEVICE, indexes[device]))
        pending = [_route_by(message, indexes[device]) for device, message in state.routes if device in indexes]
        # A route by a gateway needs the one to the gateway first.
        while pending and len(left := [route for route in pending if not _ask(_NEW_ROUTE, route)]) < len(pending):
            pending = left
        for message in state.rules:
            _ask(_NEW_RULE, message)


def _is_setting(setting: tuple[str, str]) -> bool:
    """Whether it is one that a save keeps: a snapshot, perhaps a stranger's, names the file that is written."""
    place, _, name = setting[0].rpartition("/")
    return place in _PLACES and name not in ("", ".", "..") and "\0" not in name


def _ask(kind: int, message: bytes) -> bool:
    """Whether it is there now."""
    try:
        netlink.ask(kind, netlink.CREATE | netlink.EXCLUSIVE, message)
    except OSError as error:
        return error.errno == errno.EEXIST
    return True


def _addresses(names: dict[int, str]) -> Iterator[tuple[str, bytes]]:
    for message in netlink.dump(_GET_ADDRESS):
        _, _, flags, _, index = struct.unpack_from("=BBBBI", message)
        if flags & _PERMANENT and names.get(index) in _OWN_DEVICES:
            yield names[index], _without(message, _ADDRESS_HEAD, _LIFETIMES)


def _every_address(names: dict[int, str]) -> Iterator[tuple[str, bytes]]:
    """(device, packed address) of all there are."""
    for message in netlink.dump(_GET_ADDRESS):
        found = {kind: message[begin:end] for kind, begin, end in netlink.attributes(message, _ADDRESS_HEAD)}
        index = struct.unpack_from("=I", message, _ADDRESS_DEVICE)[0]
        address = found.get(_LOCAL, found.get(_ADDRESS))
        if address is not None and index in names:
            yield names[index], address


def _without(message: bytes, head: int, kind: int) -> bytes:
    """A message without one of its attributes."""
    found = next(((begin - 4, end) for which, begin, end in netlink.attributes(message, head) if which == kind), None)
    return message if found is None else message[: found[0]] + message[found[0] + -(-(found[1] - found[0]) // 4) * 4 :]


def _routes(names: dict[int, str]) -> Iterator[tuple[str, bytes]]:
    for message in netlink.dump(_GET_ROUTE):
        protocol, flags = message[5], struct.unpack_from("=I", message, 8)[0]
        at = _device_of_route(message)
        index = struct.unpack_from("=I", message, at)[0] if at is not None else 0
        if protocol not in (_BY_KERNEL, _BY_ROUTER) and not flags & _CLONED and names.get(index) in _OWN_DEVICES:
            yield names[index], message


def _device_of_route(message: bytes) -> int | None:
    return next((at for kind, at, _ in netlink.attributes(message, _ROUTE_HEAD) if kind == _ROUTE_DEVICE), None)


def _route_by(message: bytes, index: int) -> bytes:
    at = _device_of_route(message)
    return message if at is None else _at(message, at, index)


def _at(message: bytes, offset: int, value: int) -> bytes:
    return message[:offset] + struct.pack("=I", value) + message[offset + 4 :]


def _everything(names: dict[int, str]) -> NetworkState:
    """The calling thread's network."""
    return NetworkState(
        addresses=tuple(_addresses(names)),
        routes=tuple(_routes(names)),
        rules=tuple(netlink.dump(_GET_RULE, socket.AF_INET)) + tuple(netlink.dump(_GET_RULE, socket.AF_INET6)),
        settings=dict(_settings()),
    )


def _settings() -> Iterator[tuple[str, str]]:
    for place in _PLACES:
        with contextlib.suppress(OSError), os.scandir(_SETTINGS / place) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                    try:
                        yield f"{place}/{entry.name}", os.read(fd, 4096).decode(errors="replace")
                    finally:
                        os.close(fd)


@functools.cache
def _bare() -> NetworkState:
    """A new network."""
    network_fd = ns.new_network()
    try:
        with ns.in_network(network_fd):
            return _everything(dict(socket.if_nameindex()))
    finally:
        os.close(network_fd)
