"""The service `process.Process`: commands of one sandbox over Connect RPC."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.request import RequestContext
from connectrpc.server import Endpoint

from ijfs.live.errors import CommandError, InstanceExitedError
from ijfs.serve.envd import messages as m
from ijfs.serve.envd.commands import Commands, Followed, NoCommandError, NoInputError, Running
from ijfs.serve.envd.rpc import Service, method
from ijfs_engine.errors import IjfsError

NAME = "process.Process"
KEEPALIVE_S = 50.0
"""Between two signs of life on a stream that has nothing to say, unless the client names another time."""
KEEPALIVE_HEADER = "keepalive-ping-interval"

Context = RequestContext[Any, Any]
Events = AsyncIterator[m.ProcessEvents]


def service(commands: Commands) -> Service:
    """The service as an ASGI application."""
    calls = Processes(commands)

    def unary(name: str, input: type[Any], output: type[Any], call: Any) -> Endpoint[Any, Any]:
        return Endpoint.unary(method(NAME, name, input, output), call)

    def stream(name: str, input: type[Any], call: Any) -> Endpoint[Any, Any]:
        return Endpoint.server_stream(method(NAME, name, input, m.ProcessEvents), call)

    return Service(
        NAME,
        {
            "List": unary("List", m.Nothing, m.ProcessList, calls.list),
            "Start": stream("Start", m.StartRequest, calls.start),
            "Connect": stream("Connect", m.ConnectRequest, calls.connect),
            "Update": unary("Update", m.UpdateRequest, m.Nothing, calls.update),
            "SendInput": unary("SendInput", m.SendInputRequest, m.Nothing, calls.send_input),
            "StreamInput": Endpoint.client_stream(
                method(NAME, "StreamInput", m.StreamInputRequest, m.Nothing), calls.stream_input
            ),
            "SendSignal": unary("SendSignal", m.SendSignalRequest, m.Nothing, calls.send_signal),
            "CloseStdin": unary("CloseStdin", m.CloseStdinRequest, m.Nothing, calls.close_stdin),
        },
    )


class Processes:
    """The methods."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def list(self, request: m.Nothing, ctx: Context) -> m.ProcessList:
        """The commands that run."""
        return m.ProcessList(processes=self._commands.infos)

    async def start(self, request: m.StartRequest, ctx: Context) -> Events:
        """Start a command and follow it. When the call's time is over it is killed; a client that leaves leaves it
        running."""
        size = None if request.pty is None else request.pty.size or m.PtySize(cols=80, rows=24)
        with _told():
            async with self._commands.started(
                request.process,
                user=user_of(ctx),
                tag=request.tag,
                has_input=bool(request.stdin),
                size=size,
            ) as (running, events):
                if ctx.timeout_ms is not None:
                    running.kill_in(ctx.timeout_ms / 1000)
                async for event in _stream(running, events, ctx):
                    yield event

    async def connect(self, request: m.ConnectRequest, ctx: Context) -> Events:
        """Follow a command that runs, from here on."""
        with _told():
            running = self._commands.find(request.process)
            with running.followed() as events:
                async for event in _stream(running, events, ctx):
                    yield event

    async def update(self, request: m.UpdateRequest, ctx: Context) -> m.Nothing:
        """Another size of a terminal."""
        with _told():
            if request.pty is not None and request.pty.size is not None:
                self._commands.find(request.process).resize(request.pty.size)
        return m.Nothing()

    async def send_input(self, request: m.SendInputRequest, ctx: Context) -> m.Nothing:
        """Input for a command."""
        with _told():
            await _put_in(self._commands.find(request.process), request.input)
        return m.Nothing()

    async def stream_input(self, requests: AsyncIterator[m.StreamInputRequest], ctx: Context) -> m.Nothing:
        """Input for a command, as it comes."""
        running: Running | None = None
        with _told():
            async for request in requests:
                if request.start is not None:
                    running = self._commands.find(request.start.process)
                elif request.data is not None and running is not None:
                    await _put_in(running, request.data.input)
        return m.Nothing()

    async def send_signal(self, request: m.SendSignalRequest, ctx: Context) -> m.Nothing:
        """SIGTERM or SIGKILL."""
        with _told():
            running = self._commands.find(request.process)
            if request.signal == "SIGNAL_SIGTERM":
                running.terminate()
            elif request.signal == "SIGNAL_SIGKILL":
                running.kill()
            else:
                raise ConnectError(Code.INVALID_ARGUMENT, "only SIGTERM and SIGKILL are handed on to a command")
        return m.Nothing()

    async def close_stdin(self, request: m.CloseStdinRequest, ctx: Context) -> m.Nothing:
        """No more input for a command."""
        with _told():
            self._commands.find(request.process).close_input()
        return m.Nothing()


async def _put_in(running: Running, given: m.Input) -> None:
    data = given.stdin if given.stdin is not None else given.pty
    if data is not None:
        await running.write(data)


async def _stream(running: Running, events: Followed, ctx: Context) -> Events:
    """The beginning, what comes, and a sign of life where nothing comes, until the command or the call's time ends."""
    yield m.ProcessEvents(event=m.ProcessEvent(start=m.Started(pid=running.pid)))
    pause = pause_of(ctx)
    while True:
        left = ctx.timeout_ms
        if left is not None and left <= 0:
            raise ConnectError(Code.DEADLINE_EXCEEDED, "the time for this call is over")
        event: m.ProcessEvent | None = None
        with anyio.move_on_after(pause if left is None else min(pause, left / 1000)):
            try:
                event = await events.receive()
            except anyio.EndOfStream:
                return
        if event is not None:
            yield m.ProcessEvents(event=event)
        elif left is None or left > pause * 1000:
            yield m.ProcessEvents(event=m.ProcessEvent(keepalive=m.Nothing()))


def pause_of(ctx: Context) -> float:
    try:
        return max(1.0, float(ctx.request_headers.get(KEEPALIVE_HEADER, "")))
    except ValueError:
        return KEEPALIVE_S


def user_of(ctx: Context) -> str | None:
    """The sandbox's user that a client names, as the user of HTTP's basic authentication without a password."""
    kind, _, word = ctx.request_headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(word).decode().partition(":")[0] or None
    except (binascii.Error, UnicodeDecodeError):
        raise ConnectError(Code.UNAUTHENTICATED, "the header Authorization names no user") from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong, as the protocol says it."""
    try:
        yield
    except NoCommandError as error:
        raise ConnectError(Code.NOT_FOUND, str(error)) from None
    except (CommandError, NoInputError) as error:
        raise ConnectError(Code.INVALID_ARGUMENT, str(error)) from None
    except InstanceExitedError as error:
        raise ConnectError(Code.UNAVAILABLE, f"the sandbox was not found: {error}") from None
    except IjfsError as error:
        raise ConnectError(Code.INTERNAL, str(error)) from None
