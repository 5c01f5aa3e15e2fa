"""The relay by itself, between two ends in this process: forwarding, holding, barring, dropping, half-closed ends."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from ijfs.live.errors import SandboxError
from ijfs.live.relay.relay import Relay

pytestmark = pytest.mark.root

# The program's side: this very network namespace stands for a sandbox's.


class Program:
    """What listens inside, and every connection of a test, closed at its end."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self.listener = listener
        self.streams: list[trio.SocketStream] = []

    @property
    def port(self) -> int:
        return int(self.listener.socket.getsockname()[1])

    async def accept(self) -> trio.SocketStream:
        with trio.fail_after(5):
            self.streams.append(await self.listener.accept())
        return self.streams[-1]

    async def client(self, relay: Relay) -> trio.SocketStream:
        self.streams.append(await trio.open_tcp_stream("127.0.0.1", relay.ports[0].host))
        return self.streams[-1]


@asynccontextmanager
async def relayed(name: str = "tcp1") -> AsyncIterator[tuple[Relay, Program]]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    program = Program(listener)
    relay = Relay()
    relay.open({name: program.port})
    network = os.open("/proc/self/ns/net", os.O_RDONLY)
    relay.attach(network)
    os.close(network)
    async with trio.open_nursery() as nursery, listener:
        nursery.start_soon(relay.serve)
        yield relay, program
        for stream in program.streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()
    relay.close()


async def silent(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.1) as scope:
        await stream.receive_some(1)
    return scope.cancelled_caught


@pytest.mark.trio
async def test_bytes_go_both_ways_and_each_end_is_closed_by_itself() -> None:
    async with relayed() as (relay, program):
        relay.admit()
        assert not relay.in_use
        outside = await program.client(relay)
        inside = await program.accept()
        assert relay.in_use
        await outside.send_all(b"question")
        assert await inside.receive_some() == b"question"
        await outside.send_eof()
        assert await inside.receive_some() == b""
        await inside.send_all(b"the answer comes after the end of the question")
        await inside.aclose()
        assert await outside.receive_some() == b"the answer comes after the end of the question"
        assert await outside.receive_some() == b""


@pytest.mark.trio
async def test_nobody_is_let_in_before_the_gate_is_open() -> None:
    async with relayed() as (relay, program):
        outside = await program.client(relay)
        await outside.send_all(b"early")
        with trio.move_on_after(0.1) as scope:
            await program.listener.accept()
        assert scope.cancelled_caught
        relay.admit()
        inside = await program.accept()
        assert await inside.receive_some() == b"early"


@pytest.mark.trio
async def test_holding_keeps_connections_and_bytes_and_releasing_delivers_them() -> None:
    async with relayed() as (relay, program):
        relay.admit()
        outside = await program.client(relay)
        inside = await program.accept()
        await outside.send_all(b"1")
        assert await inside.receive_some() == b"1"
        relay.hold()
        await outside.send_all(b"2")
        await inside.send_all(b"3")
        late = await program.client(relay)
        assert await silent(inside)
        assert await silent(outside)
        relay.release()
        assert await inside.receive_some() == b"2"
        assert await outside.receive_some() == b"3"
        await program.accept()
        await late.aclose()


@pytest.mark.trio
async def test_dropping_cuts_who_was_let_in_and_later_ones_wait_at_the_bar() -> None:
    async with relayed() as (relay, program):
        relay.admit()
        outside = await program.client(relay)
        inside = await program.accept()
        relay.bar()
        assert relay.drop() == 1
        assert await outside.receive_some() == b""
        assert await inside.receive_some() == b""
        again = await program.client(relay)
        await again.send_all(b"again")
        assert await silent(again)
        relay.admit()
        inside = await program.accept()
        assert await inside.receive_some() == b"again"
        with trio.fail_after(1):
            await relay.connected("tcp1")


@pytest.mark.trio
async def test_a_connection_that_is_reset_breaks_alone() -> None:
    async with relayed() as (relay, program):
        relay.admit()
        for _ in range(3):
            outside = await program.client(relay)
            inside = await program.accept()
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await inside.aclose()  # a reset
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                assert await outside.receive_some() != b""
        healthy = await program.client(relay)
        inside = await program.accept()
        await healthy.send_all(b"still there")
        assert await inside.receive_some() == b"still there"


@pytest.mark.trio
async def test_nobody_listening_inside_closes_the_client() -> None:
    async with relayed() as (relay, program):
        relay.admit()
        await program.listener.aclose()
        outside = await program.client(relay)
        with trio.fail_after(5):
            assert await outside.receive_some() == b""


@pytest.mark.trio
async def test_ports_of_before_are_taken_again_or_moved_where_they_cannot_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with relayed() as (relay, _):
            before = relay.ports[0]
        again = Relay()
        ports, moved = again.open_again([before])
        assert (ports, moved) == ((before,), [])
        again.close()
        busy = before.__class__("tcp1", before.inside, taken.getsockname()[1])
        other = Relay()
        with pytest.raises(SandboxError, match="taken by another program"):
            other.open({"tcp1": before.inside}, [busy])
        ports, moved = other.open_again([busy])
        assert ports[0].host != busy.host
        assert moved == [f"tcp1 {busy.host}"]
        other.close()
