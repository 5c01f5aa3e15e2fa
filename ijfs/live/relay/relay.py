"""The byte relay between the host and a sandbox's own network: one per instance, in its keeper's trio loop.

Inside, the program's ports never change, whichever sibling it is; outside, each instance has ports of its own. A
connection outside becomes one inside, made by setns. While a program is saved the relay *holds*: it forwards nothing
and keeps every connection, so that no byte is on its way when memory is copied (dropping the connections instead lost
output; holding lost none of 9000 lines in 15 saves of a chatty loop). When another program takes the sandbox's place
(going back), the connections are *dropped*: clients connect anew, and wait until the relay lets them in again. Those to
a kernel are handed to the new one (zmtp.py): a subscriber that is dropped loses outputs, and who asks, a request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
import trio

from ijfs.live.errors import SandboxError
from ijfs.live.model.records import RelayPort
from ijfs.live.relay import zmtp
from ijfs.live.relay.kernel_traffic import CHANNELS, Ear, KernelTraffic, Line
from ijfs.live.sandbox import namespaces as ns

# One read: a page of numpy output or an image fits; larger reads only cost memory per connection.
CHUNK = 64 << 10
HOST = "127.0.0.1"
BACKLOG = 128

Send = Callable[[bytes], Awaitable[None]]

_log = logging.getLogger("ijfs.keeper")

# How long a client whose kernel is gone has to take its last words.
LAST_WORDS_S = 1.0

# How long a client's connection to a kernel waits until the kernel listens; libzmq gives up its handshake after 30 s.
KERNEL_START_S = 25.0


class Relay:
    """Listeners on the host for one sandbox. Bind first (open), then serve in a nursery."""

    def __init__(self) -> None:
        self._listeners: dict[str, trio.SocketListener] = {}
        self._inside: dict[str, int] = {}
        self._network_fd = -1
        self._gates: dict[str, trio.Event] = {}
        self._flow = trio.Event()
        self._flow.set()
        self._connections: set[trio.CancelScope] = set()
        self._reached: dict[str, trio.Event] = {}
        self.traffic = KernelTraffic()
        """What a kernel is doing."""
        self._words: dict[zmtp.Subscriber | Line, bytes] = {}
        """What connections that are being cut are still told."""
        self._subscribers: set[zmtp.Subscriber] = set()

    def open(self, wanted: Mapping[str, int], taken: Iterable[RelayPort] = ()) -> tuple[RelayPort, ...]:
        """Listen for each `name: port inside`; ports of `taken` are asked for (again), others are the system's choice.

        Raises SandboxError when a port of `taken` is another program's by now.
        """
        before = {port.name: port for port in taken}
        for name, inside in wanted.items():
            at = before.get(name) or RelayPort(name, inside, 0)
            self._listeners[name] = trio.SocketListener(_listen(at.host, at.address))
            self._inside[name] = inside
            self._gates[name] = trio.Event()
            self._reached[name] = trio.Event()
        return self.ports

    def open_again(self, taken: Sequence[RelayPort]) -> tuple[tuple[RelayPort, ...], list[str]]:
        """Listen where a keeper before listened; (the ports, what had to move because another program took it)."""
        moved = []
        for port in taken:
            try:
                self.open({port.name: port.inside}, [port])
            except SandboxError:
                self.open({port.name: port.inside}, [msgspec.structs.replace(port, host=0)])
                moved.append(f"{port.name} {port.host}")
        return self.ports, moved

    @property
    def ports(self) -> tuple[RelayPort, ...]:
        """What listens where."""
        found = []
        for name, listener in self._listeners.items():
            address, number = listener.socket.getsockname()[:2]
            found.append(RelayPort(name, self._inside[name], int(number), str(address)))
        return tuple(found)

    @property
    def in_use(self) -> bool:
        """Whether somebody is connected to the program."""
        return bool(self._connections)

    def attach(self, network_fd: int) -> None:
        """Connections made from now on go into that network namespace (an fd, duplicated)."""
        old, self._network_fd = self._network_fd, os.dup(network_fd)
        if old >= 0:
            os.close(old)

    def admit(self, names: Sequence[str] | None = None) -> None:
        """Let waiting and new connections to those ports (default: all) in."""
        for name in names if names is not None else list(self._gates):
            self._gates[name].set()

    def bar(self) -> None:
        """New connections wait (they are accepted and kept, nothing is read of them)."""
        for name, gate in self._gates.items():
            if gate.is_set():
                self._gates[name] = trio.Event()
                self._reached[name] = trio.Event()

    def hold(self) -> None:
        """Stop forwarding; keep the connections."""
        self._flow = trio.Event()

    def release(self) -> None:
        """Forward again."""
        self._flow.set()

    def drop(self, key: str | None = None) -> int:
        """Cut all connections that were let in (outside too, where they cannot go on); how many there were. With the
        `key` of a kernel, its clients are told that what they had asked for is aborted, signed with that."""
        self._words.clear()
        if key is not None:
            replies, published = self.traffic.last_words(key.encode())
            self._words.update(dict.fromkeys(self._subscribers, published))
            for line, reply in replies.items():
                self._words[line] = reply
        connections = list(self._connections)
        for scope in connections:
            scope.cancel()
        return len(connections)

    async def connected(self, name: str) -> None:
        """Wait until a client's connection to that port has reached the program."""
        await self._reached[name].wait()

    async def serve(self) -> None:
        """Accept and forward until cancelled."""
        async with trio.open_nursery() as nursery:
            for name, listener in self._listeners.items():
                nursery.start_soon(self._accept, name, listener, nursery)

    def close(self) -> None:
        """Close the listeners."""
        for listener in self._listeners.values():
            listener.socket.close()
        if self._network_fd >= 0:
            fd, self._network_fd = self._network_fd, -1
            os.close(fd)

    async def _accept(self, name: str, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    raise
                await trio.sleep(0.1)  # the connection stays in the backlog until files are free again
                continue
            nursery.start_soon(self._connection, name, stream)

    async def _connection(self, name: str, outside: trio.SocketStream) -> None:
        end = self._end(name)
        async with outside:
            try:
                await self._served(name, outside, end)
            finally:
                if isinstance(end, Line):
                    self.traffic.left(end)
                elif end is not None:
                    self._subscribers.discard(end)

    def _end(self, name: str) -> zmtp.Subscriber | Line | None:
        """What follows a client's connection to that port, where it has to be followed."""
        if name == "iopub":
            subscriber = zmtp.Subscriber()
            self._subscribers.add(subscriber)
            return subscriber
        return Line(name, self.traffic) if name in CHANNELS else None

    async def _served(self, name: str, outside: trio.SocketStream, end: zmtp.Subscriber | Line | None) -> None:
        while True:
            await self._gates[name].wait()
            with trio.CancelScope() as scope:
                self._connections.add(scope)
                try:
                    await self._forward(name, outside, end)
                except OSError as error:  # nobody listens inside: the client sees its connection closed
                    _log.debug("no connection to %s inside: %s", name, error)
                except Exception:  # one connection may break, never the keeper
                    _log.exception("a connection to %s broke in an unknown way", name)
                finally:
                    self._connections.discard(scope)
            if not scope.cancelled_caught or end is None:
                return
            await self._say_last_words(outside, end)
            if not end.resumable:
                return

    async def _say_last_words(self, outside: trio.SocketStream, end: zmtp.Subscriber | Line) -> None:
        """To a client whose kernel is gone, where no message to it is half through."""
        words = self._words.pop(end, b"")
        with trio.move_on_after(LAST_WORDS_S), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if words and isinstance(end, zmtp.Subscriber) and end.resumable:
                await end.deliver(words, outside)
            elif words and isinstance(end, Line) and end.can_be_told:
                await outside.send_all(words)

    async def _forward(self, name: str, outside: trio.SocketStream, end: zmtp.Subscriber | Line | None) -> None:
        await self._flow.wait()
        inside = trio.SocketStream(await self._reach(name))
        async with inside:
            if end is not None and end.said:
                await end.introduce(inside)
            self._reached[name].set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, outside, inside, nursery.cancel_scope, _inwards(inside, end))
                nursery.start_soon(
                    self._pump, inside, outside, nursery.cancel_scope, _outwards(outside, end, self.traffic)
                )

    async def _reach(self, name: str) -> trio.socket.SocketType:
        """A connection inside; for a kernel's channel, once it listens.

        A kernel that still starts refuses connections. Closed then, ZMQ outside would connect again, but would say what
        it subscribes to only when its program next touches the socket: a console at its prompt lost its first outputs.
        """
        patience_s = 0.0 if name.startswith("tcp") else KERNEL_START_S
        deadline = trio.current_time() + patience_s
        while True:
            try:
                return await connect_inside(self._network_fd, self._inside[name])
            except ConnectionRefusedError:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(0.05)

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope, send: Send
    ) -> None:
        """One direction. When it breaks, so does the other, and the client sees what it would have seen without us."""
        try:
            while True:
                await trio.lowlevel.wait_readable(source.socket)
                await self._flow.wait()
                data = await source.receive_some(CHUNK)
                await self._flow.wait()
                if not data:
                    await target.send_eof()
                    return
                await send(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            both.cancel()


def _inwards(inside: trio.SocketStream, end: zmtp.Subscriber | Line | None) -> Send:
    """How what a client says gets to the program."""
    if end is None:
        return inside.send_all

    async def send(data: bytes) -> None:
        if isinstance(end, Line):
            data = end.asks(data)
        else:
            end.say(data)
        await inside.send_all(data)

    return send


def _outwards(outside: trio.SocketStream, end: zmtp.Subscriber | Line | None, traffic: KernelTraffic) -> Send:
    """How what the program says gets to a client."""
    if end is None:
        return outside.send_all
    ear = Ear(traffic)

    async def send(data: bytes) -> None:
        if isinstance(end, Line):
            end.begins_to_answer()
            await outside.send_all(data)
            end.answered(data)
        else:
            ear.hears(data, between=end.between)
            await end.deliver(data, outside)

    return send


def _listen(port: int, address: str) -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        reason = "it is taken by another program" if error.errno == errno.EADDRINUSE else (error.strerror or "").lower()
        raise SandboxError(
            f"this program cannot be reached at {address}:{port}: {reason}",
            hint="end what has it, or choose another with `--port HOST:INSIDE`",
        ) from error
    return trio.socket.from_stdlib_socket(sock)


async def connect_inside(network_fd: int, port: int) -> trio.socket.SocketType:
    """A connection to 127.0.0.1:port of that network namespace; OSError when nobody listens there."""
    with ns.in_network(network_fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inside = trio.socket.from_stdlib_socket(sock)
    try:
        await inside.connect((HOST, port))
    except BaseException:
        inside.close()
        raise
    return inside
