"""The keeper's side of the guest protocol: what a program in a sandbox may ask of its own keeper, and what it is told.

docs/architecture.md, "The guest protocol", has the wire; ijfs.guest is the program's side. Held by state.py; what is
asked is answered by guest_requests.py. One short connection a request: none may be open when the program is frozen.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from ijfs.guest import GUEST_PORT
from ijfs.live.errors import ProtocolError
from ijfs.live.model.guest_protocol import (
    GuestAnswer,
    GuestHooks,
    GuestRequest,
    HookAnswer,
    HookEvent,
    HooksAnswer,
    decode_hook_answer,
    decode_request,
    encode_answer,
)
from ijfs.live.relay.relay import connect_inside
from ijfs.live.sandbox import namespaces as ns
from ijfs_engine.errors import IjfsError, PreflightError

AnswerGuest = Callable[[GuestRequest], Awaitable[GuestAnswer]]

REQUEST_LIMIT_S = 5.0
MAX_REQUEST = 1 << 20
HOOK_LIMIT_S = 10.0

# What a peer can do wrong on one connection; none of it may reach the keeper's loop.
_BROKEN = (
    OSError,
    ValueError,
    ProtocolError,
    trio.TooSlowError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)

_log = logging.getLogger("ijfs.keeper")


class GuestPort:
    """The listener inside, and the hooks the program gave; `on_hooks` is told when those change."""

    def __init__(self, answer: AnswerGuest, on_hooks: Callable[[tuple[int, ...]], None]) -> None:
        self._answer = answer
        self._on_hooks = on_hooks
        self._waiting: socket.socket | None = None
        self._listener: trio.SocketListener | None = None
        self._serving: trio.CancelScope | None = None
        self.hook_ports: list[int] = []

    def set_hooks(self, ports: Sequence[int]) -> None:
        """The hooks that a program brings along from its snapshot, or had with an earlier keeper."""
        self.hook_ports = list(ports)

    def listen(self, network_fd: int) -> None:
        """Listen inside: who connects waits until `open`. A program that took the port itself does without a keeper."""
        try:
            with ns.in_network(network_fd):
                self._waiting = socket.create_server(("127.0.0.1", GUEST_PORT), backlog=16)
        except OSError as error:
            _log.warning("no guest port: %s", error)

    def open(self, network_fd: int, nursery: trio.Nursery) -> None:
        """Serve in `nursery` who connects, from now on or since `listen`."""
        if self._waiting is None:
            self.listen(network_fd)
        if self._waiting is None:
            return
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._waiting))
        self._waiting = None
        self._serving = trio.CancelScope()
        nursery.start_soon(self._serve, self._listener, self._serving)

    def close(self) -> None:
        """Stop listening and cut open connections: none may be in an image."""
        if self._serving is not None:
            self._serving.cancel()
        if self._listener is not None:
            self._listener.socket.close()
        if self._waiting is not None:
            self._waiting.close()
        self._listener = self._serving = self._waiting = None

    async def _serve(self, listener: trio.SocketListener, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        stream = await listener.accept()
                    except (OSError, trio.ClosedResourceError):
                        return
                    nursery.start_soon(self._connection, stream)

    async def _connection(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                with trio.fail_after(REQUEST_LIMIT_S):
                    reply = await self._reply(await _read_line(stream))
                    await stream.send_all(encode_answer(reply))
            except _BROKEN as error:
                _log.info("a guest connection broke: %r", error)

    async def _reply(self, line: bytes) -> GuestAnswer | IjfsError:
        """The answer to a request. Whatever a program sends is answered: it must not be able to end its keeper."""
        try:
            request = decode_request(line)
            if isinstance(request, GuestHooks):
                self._add_hook(request.port)
                return HooksAnswer()
            return await self._answer(request)
        except IjfsError as error:
            return error

    def _add_hook(self, port: int) -> None:
        if port not in self.hook_ports:
            self.hook_ports.append(port)
            self._on_hooks(tuple(self.hook_ports))

    async def tell(self, network_fd: int, event: HookEvent) -> bool:
        """Send an event to every hook and wait for it; whether one took variables that it was told. PreflightError when
        one refuses a save."""
        taken = False
        for port in list(self.hook_ports):
            try:
                with trio.fail_after(HOOK_LIMIT_S):
                    answer = await _exchange(network_fd, port, event)
            except ConnectionRefusedError:
                self.hook_ports.remove(port)
                self._on_hooks(tuple(self.hook_ports))
                continue
            except _BROKEN as error:
                _log.warning("the hook at %d did not answer %s: %r", port, event.event, error)
                continue
            self._judge(answer, event)
            taken = taken or (isinstance(answer.ok, dict) and answer.ok.get("env") is True)
        return taken

    @staticmethod
    def _judge(answer: HookAnswer, event: HookEvent) -> None:
        error = answer.error
        if error is None:
            return
        message = str(error.get("message") if isinstance(error, dict) else error)
        if event.event == "before_save" and answer.refuse:
            raise PreflightError(f"the program refuses to be saved now: {message}", hint="try again a little later")
        _log.warning("a hook failed at %s: %s", event.event, message)


async def _exchange(network_fd: int, port: int, event: HookEvent) -> HookAnswer:
    stream = trio.SocketStream(await connect_inside(network_fd, port))
    async with stream:
        await stream.send_all(msgspec.json.encode(event) + b"\n")
        return decode_hook_answer(await _read_line(stream))


async def _read_line(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = await stream.receive_some(65536)
        if not part:
            raise ValueError("the connection ended in the middle of a line")
        data += part
        if len(data) > MAX_REQUEST:
            raise ValueError("the line is too long")
    return bytes(data)
