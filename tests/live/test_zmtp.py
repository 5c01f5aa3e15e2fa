"""A subscriber's connection handed from one publisher to the next, between real ZMQ sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import zmq
from hypothesis import given
from hypothesis import strategies as st

from ijfs.live.relay.zmtp import GREETING, Follower, Subscriber

HANDSHAKE = bytes(GREETING) + b"\x04\x19" + bytes(25)
MESSAGES = [b"\x00\x05hello", b"\x01\x01a\x00\x01b", b"\x02" + (300).to_bytes(8, "big") + bytes(300), b"\x00\x00"]


@given(st.lists(st.sampled_from(MESSAGES)), st.lists(st.integers(1, 400)))
def test_wherever_the_stream_is_cut_the_follower_knows_where_messages_end(
    messages: list[bytes], cuts: list[int]
) -> None:
    stream = HANDSHAKE + b"".join(messages)
    ends = {len(HANDSHAKE)}
    for message in messages:
        ends.add(max(ends) + len(message))
    follower, position = Follower(), 0
    for step in [*cuts, len(stream)]:
        follower.feed(stream[position : position + step])
        position = min(position + step, len(stream))
        assert follower.at_rest == (position in ends)


def test_a_client_that_says_too_much_is_not_resumed() -> None:
    subscriber = Subscriber()
    subscriber.say(bytes(GREETING) + b"\x04\x01x")
    for _ in range(100):
        subscriber.say(b"\x06" + (1000).to_bytes(8, "big") + bytes(1000))
    assert not subscriber.resumable
    assert len(subscriber.said) < 70_000


@asynccontextmanager
async def through(subscriber: Subscriber, client: trio.SocketStream, port: int) -> AsyncIterator[None]:
    """Forward between a client and the publisher at `port`, as the relay does; then cut the publisher's side."""
    kernel = await trio.open_tcp_stream("127.0.0.1", port)

    async def inwards() -> None:
        while data := await client.receive_some(4096):
            subscriber.say(data)
            await kernel.send_all(data)

    async def outwards() -> None:
        while data := await kernel.receive_some(4096):
            await subscriber.deliver(data, client)

    async with kernel, trio.open_nursery() as nursery:
        if subscriber.said:
            await subscriber.introduce(kernel)
        nursery.start_soon(inwards)
        nursery.start_soon(outwards)
        yield
        nursery.cancel_scope.cancel()


async def received(socket: zmq.Socket[bytes]) -> bytes:
    assert await trio.to_thread.run_sync(socket.poll, 5000)
    return socket.recv()


async def subscribed(publisher: zmq.Socket[bytes]) -> None:
    assert await received(publisher) == b"\x01topic"


def test_a_subscriber_hears_the_second_publisher_without_doing_anything() -> None:
    async def scene() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        sub.connect(f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}")
        client = await listener.accept()
        await listener.aclose()  # the client cannot connect a second time
        subscriber = Subscriber()
        for publisher, port in ((first, ports[0]), (second, ports[1])):
            async with through(subscriber, client, port):
                await subscribed(publisher)
                publisher.send(b"topic and what it is about")
                assert await received(sub) == b"topic and what it is about"
            assert subscriber.resumable
        await client.aclose()

    with zmq.Context() as context, context.socket(zmq.XPUB) as first, context.socket(zmq.XPUB) as second:
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (first, second)]
        with context.socket(zmq.SUB) as sub:
            sub.subscribe(b"topic")
            trio.run(scene)


def test_what_does_not_speak_zmtp_is_refused() -> None:
    async def scene() -> None:
        async def answer(stream: trio.SocketStream) -> None:
            await stream.send_all(bytes(GREETING) + b"\x04\x06\x05OTHER")

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, answer, 0)
            subscriber = Subscriber()
            subscriber.say(HANDSHAKE)
            stream = await trio.testing.open_stream_to_socket_listener(listeners[0])
            with pytest.raises(ConnectionError):
                await subscriber.introduce(stream)
            await stream.aclose()
            nursery.cancel_scope.cancel()

    trio.run(scene)
