"""Bytes between a client and an instance, as they come: plain TCP, and HTTP connections that were switched to another
protocol (websockets). Such a connection outlives a park in memory: what the client says then wakes the program."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

CHUNK = 64 << 10

Before = Callable[[], Awaitable[object]]
"""What is awaited before bytes go on."""

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""How the other end of a connection goes away."""


async def connected(port: int) -> trio.SocketStream:
    """A connection to an instance's port here; OSError."""
    return await trio.open_tcp_stream("127.0.0.1", port)


async def pump_both(client: trio.SocketStream, inside: trio.SocketStream, awake: Before, used: Before) -> None:
    """Until either end leaves. `awake` before the client's bytes go in, `used` when the program's come out."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, client, inside, awake, nursery.cancel_scope)
        nursery.start_soon(_pump, inside, client, used, nursery.cancel_scope)


async def _pump(source: trio.SocketStream, target: trio.SocketStream, before: Before, both: trio.CancelScope) -> None:
    """One direction; its end is handed on, a break breaks the other, too."""
    try:
        while data := await source.receive_some(CHUNK):
            await before()
            await target.send_all(data)
        await target.send_eof()
    except BROKEN:
        both.cancel()
