"""Requests through a deployment's port, to a real HTTP server behind it: bodies as they come, both ways; what is
refused; what is tried again; connections that change their protocol."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from waiting import patient

from ijfs.deployments import front_http
from ijfs.deployments.deployment import Deployment
from ijfs_engine.errors import IjfsError

pytestmark = pytest.mark.trio

Serve = Callable[[trio.SocketStream], Awaitable[None]]

LIMIT_S = patient(30.0)


class Standing:
    """What the front asks of a deployment, with an instance that always runs."""

    def __init__(self, port: int, *, hidden: tuple[str, ...] = (), refusal: IjfsError | None = None) -> None:
        self.spec = SimpleNamespace(name="web", hidden=hidden)
        self.under_way = self.asked = self.streams = 0
        self._port, self._refusal = port, refusal

    @contextlib.asynccontextmanager
    async def request(self) -> AsyncIterator[Any]:
        if self._refusal is not None:
            raise self._refusal
        self.under_way += 1
        self.asked += 1
        try:
            yield SimpleNamespace(port=self._port)
        finally:
            self.under_way -= 1

    @contextlib.contextmanager
    def switched(self) -> Iterator[None]:
        self.streams += 1
        yield

    async def awake(self) -> None: ...

    async def used(self) -> None: ...

    def note_use(self) -> None: ...


@contextlib.asynccontextmanager
async def front(behind: Serve, **settings: Any) -> AsyncIterator[tuple[Standing, int]]:
    """A server that handles each connection so, and the front before it: its port."""
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            (inside,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            (outside,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            standing = Standing(inside.socket.getsockname()[1], **settings)

            async def serve(stream: trio.SocketStream) -> None:
                async with stream:
                    await front_http.serve(cast(Deployment, standing), stream)

            async def server(stream: trio.SocketStream) -> None:
                async with stream:
                    await behind(stream)

            nursery.start_soon(trio.serve_listeners, server, [inside])
            nursery.start_soon(trio.serve_listeners, serve, [outside])
            yield standing, outside.socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def until(stream: trio.SocketStream, end: bytes) -> bytes:
    """What comes until that; all there is, where the other end closes before."""
    data = b""
    while end not in data:
        more = await stream.receive_some(1 << 16)
        if not more:
            break
        data += more
    return data


def answering(answer: bytes) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send_all(answer)

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_one_connection_carries_request_after_request() -> None:
    async with front(answering(OK)) as (standing, port), await trio.open_tcp_stream("127.0.0.1", port) as client:
        for _ in range(3):
            await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await until(client, b"ok")).startswith(b"HTTP/1.1 200")
        while standing.under_way:
            await trio.sleep(0.01)
        assert standing.asked == 3


async def test_an_answer_is_handed_on_piece_by_piece() -> None:
    go = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go.wait()
        await stream.send_all(b"data: 2\n\n")

    async with front(slow) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        assert b"chunked" in await until(client, b"data: 1")
        go.set()
        assert b"data: 2" in await until(client, b"0\r\n\r\n")


async def test_a_body_is_handed_on_before_it_is_whole() -> None:
    seen = trio.Event()

    async def echo(stream: trio.SocketStream) -> None:
        await until(stream, b"first")
        seen.set()
        await until(stream, b"0\r\n\r\n")
        await stream.send_all(OK)

    async with front(echo) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await seen.wait()
        await client.send_all(b"6\r\nsecond\r\n0\r\n\r\n")
        assert b"200 OK" in await until(client, b"ok")


async def test_a_connection_that_changes_its_protocol_carries_bytes_both_ways() -> None:
    async def websocket(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello"
        )
        await stream.send_all(await until(stream, b"ping") + b"pong")

    async with front(websocket) as (standing, port), await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = await until(client, b"hello")
        assert head.startswith(b"HTTP/1.1 101")
        await client.send_all(b"ping")
        assert (await until(client, b"pong")).endswith(b"pingpong")
        assert standing.streams == 1


@pytest.mark.parametrize(
    "target",
    ["/sleep?level=1", "http://x/sleep", "/%73leep", "//sleep", "/v1/../sleep", "/sleep/", "/sleep/now", "/sleep#a"],
)
async def test_what_is_hidden_reaches_nobody(target: str) -> None:
    async with (
        front(answering(OK), hidden=("/sleep",)) as (standing, port),
        await trio.open_tcp_stream("127.0.0.1", port) as client,
    ):
        await client.send_all(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert b"403" in await until(client, b"deployment")
        await client.send_all(b"GET /sleepless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await until(client, b"ok")
        assert standing.asked == 1


async def test_who_cannot_be_served_hears_why() -> None:
    refusal = IjfsError("no room for `web`")
    async with (
        front(answering(OK), refusal=refusal) as (_, port),
        await trio.open_tcp_stream("127.0.0.1", port) as client,
    ):
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await until(client, b"no room for `web`")
        assert b"503" in answer
        assert b"Retry-After: 1" in answer


@pytest.mark.parametrize(("method", "tries", "status"), [("GET", 2, b"200"), ("POST", 1, b"502")])
async def test_without_an_answer_only_what_may_be_repeated_is(method: str, tries: int, status: bytes) -> None:
    calls = []

    async def closes_once(stream: trio.SocketStream) -> None:
        calls.append(await until(stream, b"\r\n\r\n"))
        if len(calls) > 1:
            await stream.send_all(OK)

    async with front(closes_once) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert status in await until(client, b"\r\n\r\n")
        assert len(calls) == tries


async def test_an_answer_to_a_client_that_left_is_given_up() -> None:
    began, left = trio.Event(), trio.Event()

    async def works(stream: trio.SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        began.set()
        assert await stream.receive_some(1) == b""
        left.set()

    async with front(works) as (standing, port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await began.wait()
        await left.wait()
        while standing.under_way:
            await trio.sleep(0.01)


async def test_what_is_no_http_ends_its_connection_only() -> None:
    async with front(answering(OK)) as (_, port):
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"\x16\x03\x01 no http\r\n\r\n")
            assert await until(client, b"never") == b""
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await until(client, b"never")).startswith(b"HTTP/1.1 200")
