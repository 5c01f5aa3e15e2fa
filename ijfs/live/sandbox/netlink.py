"""The kernel's own way to speak about networks (rtnetlink), as far as a sandbox needs it.

All of it is about the network namespace of the calling thread.

Called by silence.py and network_state.py.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

# <linux/netlink.h>
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_LARGEST_ANSWER = 1 << 17


def ask(kind: int, flags: int, body: bytes) -> None:
    """One request, acknowledged. OSError with the kernel's errno."""
    with _socket() as sock:
        sock.sendall(_message(kind, flags | REQUEST | ACK, body))
        answer = sock.recv(_LARGEST_ANSWER)
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
    if code:
        raise OSError(code, os.strerror(code))


def dump(kind: int, family: int = socket.AF_UNSPEC) -> Iterator[bytes]:
    """The bodies of all that the kernel has of a kind (RTM_GET…). OSError."""
    with _socket() as sock:
        sock.sendall(_message(kind, REQUEST | DUMP, struct.pack("=B15x", family)))
        while True:
            answer = sock.recv(_LARGEST_ANSWER)
            at = 0
            while at + _HEADER.size <= len(answer):
                length, answered, _, _, _ = _HEADER.unpack_from(answer, at)
                if answered == _DONE:
                    return
                if answered == _ERROR or length < _HEADER.size:
                    raise OSError(errno.EIO, "rtnetlink refuses to tell")
                yield answer[at + _HEADER.size : at + length]
                at += -(-length // 4) * 4


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """(kind, begin, end of the value) of the attributes of a body from `start` on."""
    at = start
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4 or at + length > len(body):
            return
        yield kind & 0x3FFF, at + 4, at + length
        at += -(-length // 4) * 4


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
