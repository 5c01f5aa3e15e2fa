"""Enough of ZMTP 3 to hand a client's connection from one kernel to the next. Used by relay.py for subscribers to
iopub, and by kernel_traffic.py for the channels on which clients ask.

When a program is replaced in place, its clients' connections would have to be made anew. ZMQ does that by itself, but a
subscriber only says again what it subscribes to when its program next touches the socket: `jupyter console`, waiting at
its prompt, lost the outputs of the next cell and hung for ever. So the relay keeps that connection, and says to the new
kernel what the client had said to the old one: its handshake and its subscriptions, all that a subscriber ever says.

Wire format: https://rfc.zeromq.org/spec/37 (ZMTP 3.1) and /spec/23 (3.0), which differ in nothing that is used here.
"""

from __future__ import annotations

import trio

GREETING = 64
VERSION_AT = 10
MECHANISM = slice(12, 32)
NULL = b"NULL".ljust(20, b"\0")

# Bits of a frame's first byte.
MORE, LONG, COMMAND = 1, 2, 4

# A subscriber says some hundred bytes. One that says more (heartbeats, for hours) is not worth remembering.
MAX_SAID = 64 << 10

# The new kernel listens and its ZMQ threads run when this begins; a greeting takes a millisecond.
HANDSHAKE_LIMIT_S = 5.0


class Follower:
    """Follows one direction of a connection through its frames."""

    def __init__(self) -> None:
        self._left = GREETING
        self._header = bytearray()
        self._flags = 0
        self._frames = -1  # the greeting counts as the frame before the first

    @property
    def at_rest(self) -> bool:
        """Whether the handshake (greeting, READY) is through and no message is half through."""
        return self._frames > 0 and not self._left and not self._header and not self._flags & MORE

    def feed(self, data: bytes) -> None:
        """Go on by these bytes."""
        position = 0
        while position < len(data):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
                position += step
                if not self._left:
                    self._frames += 1
            else:
                self._header.append(data[position])
                position += 1
                self._begin_frame()

    def _begin_frame(self) -> None:
        """Once the header is complete (flags, and a length of one byte or eight), its body is what is left."""
        flags = self._header[0]
        if len(self._header) < (9 if flags & LONG else 2):
            return
        self._flags = flags
        self._left = int.from_bytes(self._header[1:], "big")
        self._header.clear()
        if not self._left:
            self._frames += 1


class Subscriber:
    """One client of iopub: what it has said, and how far the kernel's answers to it have come."""

    def __init__(self) -> None:
        self.said = bytearray()
        self._saying = Follower()
        self._hearing = Follower()
        self._delivering = False

    @property
    def resumable(self) -> bool:
        """Whether another kernel can go on where the last one stopped."""
        plain = self.said[VERSION_AT : VERSION_AT + 1] >= b"\x03" and self.said[MECHANISM] == NULL
        between = self._saying.at_rest and self._hearing.at_rest and not self._delivering
        return plain and between and len(self.said) <= MAX_SAID

    @property
    def between(self) -> bool:
        """Whether no message of the kernel's is half through."""
        return self._hearing.at_rest and not self._delivering

    def say(self, data: bytes) -> None:
        """The client said this; beyond the limit it is no longer kept, and the connection not resumable."""
        self._saying.feed(data)
        if len(self.said) <= MAX_SAID:
            self.said += data

    async def deliver(self, data: bytes, client: trio.SocketStream) -> None:
        """Send what the kernel said. Cancelled on the way, nobody knows how much arrived: no longer resumable."""
        self._delivering = True
        await client.send_all(data)
        self._hearing.feed(data)
        self._delivering = False

    async def introduce(self, kernel: trio.SocketStream) -> None:
        """Say to another kernel what the client said, and swallow its handshake. ConnectionError when it is another."""
        await introduce(kernel, bytes(self.said))


def handshake_of(said: bytes) -> bytes | None:
    """The greeting and the first command of a client that uses ZMTP 3 without encryption; None where they are not
    whole, or others."""
    if len(said) < GREETING + 2 or said[VERSION_AT] < 3 or said[MECHANISM] != NULL:
        return None
    head = 9 if said[GREETING] & LONG else 2
    end = GREETING + head + int.from_bytes(said[GREETING + 1 : GREETING + head], "big")
    return said[:end] if said[GREETING] & COMMAND and len(said) >= end else None


async def introduce(kernel: trio.SocketStream, said: bytes) -> None:
    """Say to another kernel what a client said first, and swallow its handshake. ConnectionError when it is another."""
    try:
        with trio.fail_after(HANDSHAKE_LIMIT_S):
            await _shake_hands(kernel, said)
    except (trio.TooSlowError, trio.BrokenResourceError) as error:
        raise ConnectionError("the kernel broke off in its handshake") from error


async def _shake_hands(kernel: trio.SocketStream, said: bytes) -> None:
    # libzmq closes a connection that says more than a greeting before it has said its own.
    await kernel.send_all(said[:GREETING])
    greeting = await _exactly(kernel, GREETING)
    await kernel.send_all(said[GREETING:])
    flags = (await _exactly(kernel, 1))[0]
    size = int.from_bytes(await _exactly(kernel, 8 if flags & LONG else 1), "big")
    ready = await _exactly(kernel, size)
    if greeting[MECHANISM] != NULL or not flags & COMMAND or not ready.startswith(b"\x05READY"):
        raise ConnectionError("the kernel's handshake is not the one expected")


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    if count > MAX_SAID:
        raise ConnectionError(f"a handshake of {count} bytes")
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise ConnectionError("the connection ended in its handshake")
        data += part
    return bytes(data)
