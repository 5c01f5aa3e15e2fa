"""The socketpair between a pager and its keeper: JSON objects, one a packet, some with file descriptors.

pager → keeper
    hello    {"pid"}                first, from a pager that another process forked
    hold     {"id", "kind": "space" | "criu"} + fds: keep these until `release`, hand them to a replacement
    release  {"id"}
    resumed  {}                     CRIU says that the restore is complete: the program runs
    progress {"pages", "pages_in", "zero", "poisoned", "faults", "spaces", "seconds"}
    poisoned {"pid", "vaddr", "pages", "reason"}
    stalled  {"reason"}             a place that should give bytes does not answer; tried again
    complete {…as progress}         everything is in; let go of what is held
    lost     {"pid"}                a forked child's userfaultfd went down with supervisor and worker
    failed   {"message"}            the pager gives up before the restore is complete
keeper → pager
    begin    {…} + fd of the listening socket: see `__main__`
    adopt    {"id", "kind"} + fds   once per thing held, to a replacement
    adopted  {"resumed"}            that was all of them; whether the program runs
    released {}                     the answer to `complete`
"""

from __future__ import annotations

import array
import json
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

_MAX_PACKET: Final = 64 << 10
_ANCILLARY: Final = socket.CMSG_SPACE(4 * 4)
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class Channel:
    """One end of it. Sending never raises and never waits longer than a second: the other side may be dead."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(True)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
        self._socket = end
        self.alive = True

    @staticmethod
    def pair() -> tuple[socket.socket, socket.socket]:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, event: str, fds: Sequence[int] = (), /, **details: Any) -> bool:
        """Send one object; False when it could not be delivered."""
        packet = json.dumps({"event": event, **details}).encode() + b"\n"
        try:
            socket.send_fds(self._socket, [packet], list(fds), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            self.alive = False
            return False
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float | None = 0.0) -> tuple[dict[str, Any], list[int]] | None:
        """The next object and its file descriptors; None when none came in time, or ever will (`alive` is False).

        A `timeout_s` of None waits for ever.
        """
        if timeout_s != 0.0 and not select.select([self._socket], [], [], timeout_s)[0]:
            return None
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(_MAX_PACKET, _ANCILLARY, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            packet, ancillary = b"", []
        if not packet:
            self.alive = False
            return None
        return json.loads(packet), received_fds(ancillary)

    def close(self) -> None:
        self.alive = False
        self._socket.close()


def received_fds(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The file descriptors in what `recvmsg` gave (socket.recv_fds cannot be told to make them close-on-exec)."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
