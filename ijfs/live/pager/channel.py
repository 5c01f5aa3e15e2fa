"""The socketpair between a pager and its keeper: one of `messages` a packet, some with file descriptors."""

from __future__ import annotations

import array
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ijfs.live.pager.messages import Message

_MAX_PACKET: Final = 64 << 10
_ANCILLARY: Final = socket.CMSG_SPACE(4 * 4)
_DECODER: Final = msgspec.json.Decoder(Message)
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

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send one message; False when it could not be delivered."""
        packet = msgspec.json.encode(message) + b"\n"
        try:
            socket.send_fds(self._socket, [packet], list(fds), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            self.alive = False
            return False
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float | None = 0.0) -> tuple[Message, list[int]] | None:
        """The next message and its file descriptors; None when none came in time, or ever will (`alive` is False).

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
        return _DECODER.decode(packet), received_fds(ancillary)

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
