"""TCP connections that a CRIU left in repair mode: it switches that on while it reads them, and one that is killed does
not switch it off again. Nothing comes in or goes out meanwhile. Called by checkpoint/freeze.py."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence

from ijfs.live.process.descriptors import borrowed

TCP_REPAIR = 19
OFF_NO_WINDOW_PROBE = -1
"""Off, and say nothing to the other side (linux/tcp.h)."""


def end(pids: Sequence[int]) -> None:
    """Let the connections of these processes go on."""
    for pid, fd in _sockets(pids):
        with contextlib.suppress(OSError), socket.socket(fileno=borrowed(pid, fd)) as sock:
            if sock.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR):
                sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, OFF_NO_WINDOW_PROBE)


def _sockets(pids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(pid, descriptor)."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                        yield pid, int(name)
