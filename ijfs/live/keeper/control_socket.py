"""The keeper's end of the control socket: requests in, dispatched, events and answers out. For server.py."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ijfs.live.errors import KeeperError, ProtocolError, error_fields
from ijfs.live.model import protocol
from ijfs.live.model.protocol import Arguments, Emit, Request
from ijfs.live.model.records import InstanceInfo, SaveResult
from ijfs.live.process import unix_socket
from ijfs_engine.errors import IjfsError, StorageError, is_of_a_disk

Dispatch = Callable[[Arguments[Any], Emit], Awaitable[InstanceInfo | SaveResult | None]]
"""Does what a request asks for, its events to `Emit`, and returns the reply."""

WATCH = protocol.verb_of(protocol.WatchArguments())

_log = logging.getLogger("ijfs.keeper")


def listen(path: Path) -> trio.SocketListener:
    """A listener at the control socket's path, 0600, in the place of a dead keeper's."""
    path.unlink(missing_ok=True)
    sock = unix_socket.bound(path)
    sock.listen(64)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(listener: trio.SocketListener, dispatch: Dispatch) -> None:
    """Serve all who connect, until cancelled."""
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                _log.warning("accept on the control socket failed: %s", error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(serve_connection, stream, dispatch)


async def serve_connection(stream: trio.SocketStream, dispatch: Dispatch) -> None:
    """One client, one request after the other; a client that leaves in the middle of a verb does not stop it."""
    lines = protocol.LineBuffer()
    async with stream:
        if not _is_permitted(stream):
            return
        while True:
            try:
                data = await stream.receive_some(1 << 16)
                requests = lines.feed(data)
            except (trio.BrokenResourceError, ProtocolError):
                return
            if not data:
                return
            for line in requests:
                await serve_request(stream, line, dispatch)


async def serve_request(stream: trio.SocketStream, line: bytes, dispatch: Dispatch) -> bool:
    """Answer one line; whether its verb succeeded."""
    try:
        request = protocol.decode_request(line)
    except ProtocolError as error:
        await _send(stream, protocol.encode_error(None, error_fields(error)))
        return False
    sender, receiver = trio.open_memory_channel[bytes](float("inf"))
    token = trio.lowlevel.current_trio_token()

    def post(answer: bytes) -> None:
        """From any thread; the order is kept, because the reply goes the same way."""
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(sender.send_nowait, answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_forward, receiver, stream)
        wanted = partial(_until_left, stream, dispatch) if request.verb == WATCH else dispatch
        succeeded, last = await _answer(request, wanted, lambda event: post(protocol.encode_event(request.id, event)))
        post(last)
        token.run_sync_soon(sender.close)
    return succeeded


async def _until_left(
    stream: trio.SocketStream, dispatch: Dispatch, arguments: Arguments[Any], emit: Emit
) -> InstanceInfo | SaveResult | None:
    """A watch ends with its client, or with the next thing that it says; other verbs are done for whoever has left."""
    reply = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_left, stream, nursery.cancel_scope)
        reply = await dispatch(arguments, emit)
        nursery.cancel_scope.cancel()
    return reply


async def _left(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(stream.socket)
    scope.cancel()


async def _answer(request: Request, dispatch: Dispatch, emit: Emit) -> tuple[bool, bytes]:
    """Whether the verb succeeded, and the line that says so."""
    try:
        return True, protocol.encode_reply(request.id, await dispatch(request.arguments(), emit))
    except IjfsError as error:
        _log.info("%s refused: %s", request.verb, error)
        return False, protocol.encode_error(request.id, error_fields(error))
    except Exception as error:
        return False, protocol.encode_error(request.id, error_fields(_explained(request, error)))


def _explained(request: Request, error: Exception) -> IjfsError:
    """What nobody expected, in words: a full disk is no fault of the keeper's."""
    _log.exception("%s met an error", request.verb)
    if isinstance(error, OSError) and is_of_a_disk(error):
        return StorageError.of(f"the keeper cannot do `{request.verb}`", error)
    text = f"the keeper met an error it does not know: {type(error).__name__}: {error}"
    return KeeperError(text, hint="keeper.log in the program's directory has the details")


async def _forward(receiver: trio.MemoryReceiveChannel[bytes], stream: trio.SocketStream) -> None:
    async for line in receiver:
        await _send(stream, line)


async def _send(stream: trio.SocketStream, line: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(line)


def _is_permitted(stream: trio.SocketStream) -> bool:
    """Only the keeper's own user and root may speak with it, whatever became of the socket's permissions."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (0, os.getuid())
