"""HTTP/1.1 from a deployment's port to its instances: each request goes to the one that has the fewest under way.

Parsing and framing are h11's. A client's connection is kept from request to request; between two, its program may be
parked, end up on disk, or give way to a newer one. Bodies are streamed in both directions, also at once. A request is
sent again only where it could not have been understood: an idempotent one without an answer.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import h11
import trio

from ijfs.deployments.front_tcp import BROKEN, CHUNK, connected, pump_both
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.deployments.backend import Backend
    from ijfs.deployments.deployment import Deployment

_IDEMPOTENT = (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE")
_MOST_TRIES = 3
_HOP_BY_HOP = (b"connection", b"keep-alive", b"proxy-connection")

_MOST_HEADERS = 256 << 10

_Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class _NoAnswerError(Exception):
    """An instance took a connection and closed it without an answer."""


async def serve(deployment: Deployment, client: trio.SocketStream) -> None:
    """One client's connection, request after request."""
    with contextlib.suppress(*BROKEN, h11.RemoteProtocolError, h11.LocalProtocolError):
        front = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEADERS)
        while True:
            request = await _next(front, client)
            if not isinstance(request, h11.Request):
                return
            await _answered(deployment, front, client, request)
            _pass_over_body(front)
            if front.our_state is not h11.DONE or front.their_state is not h11.DONE:
                return
            front.start_next_cycle()


async def _next(connection: h11.Connection, stream: trio.SocketStream) -> _Event:
    """The next event of a connection."""
    while True:
        event: _Event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await stream.receive_some(CHUNK))


async def _answered(
    deployment: Deployment, front: h11.Connection, client: trio.SocketStream, request: h11.Request
) -> None:
    """Have a request answered, by an instance or with the reason why by none."""
    path = _path_of(request.target)
    if any(path == hidden or path.startswith(f"{hidden}/") for hidden in deployment.spec.hidden):
        await _refuse(front, client, 403, f"{path} is not for clients of this deployment")
        return
    for tries in range(1, _MOST_TRIES + 1):
        body = _Body()
        try:
            async with deployment.request() as backend:
                await _Exchange(deployment, front, client, request, backend, body).run()
            return
        except IjfsError as error:
            await _refuse(front, client, 503, f"{error}")
            return
        except (_NoAnswerError, OSError) as error:
            if front.our_state is not h11.SEND_RESPONSE:
                raise
            if request.method not in _IDEMPOTENT or body.begun or tries == _MOST_TRIES:
                await _refuse(front, client, 502, f"`{deployment.spec.name}` gave no answer: {error}")
                return


def _path_of(target: bytes) -> str:
    """The path that a server will understand: decoded, without what makes one path look like another."""
    text = target.decode("latin-1").partition("?")[0].partition("#")[0]
    if not text.startswith("/"):  # the absolute form, which servers take as well
        text = urlsplit(text).path
    return posixpath.normpath("/" + unquote(text).lstrip("/"))


def _pass_over_body(front: h11.Connection) -> None:
    """What came of a request's body that nobody wanted; the rest of a long one is not waited for."""
    while front.their_state is h11.SEND_BODY and front.next_event() is not h11.NEED_DATA:
        pass


async def _refuse(front: h11.Connection, client: trio.SocketStream, status: int, reason: str) -> None:
    _pass_over_body(front)
    body = f"{reason}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    if front.their_state is h11.SEND_BODY:
        headers.append(("Connection", "close"))
    if status == 503:
        headers.append(("Retry-After", "1"))
    await _send(front, client, h11.Response(status_code=status, headers=headers))
    await _send(front, client, h11.Data(data=body))
    await _send(front, client, h11.EndOfMessage())


async def _send(connection: h11.Connection, stream: trio.SocketStream, event: h11.Event) -> None:
    data = connection.send(event)
    if data:
        await stream.send_all(data)


class _Body:
    """Whether something of a request's body has gone to an instance: it cannot be read from the client again."""

    begun = False


class _Exchange:
    """One request and its answer, over a connection of its own to an instance."""

    def __init__(
        self,
        deployment: Deployment,
        front: h11.Connection,
        client: trio.SocketStream,
        request: h11.Request,
        backend: Backend,
        body: _Body,
    ) -> None:
        self._deployment = deployment
        self._front, self._client = front, client
        self._request, self._backend, self._body = request, backend, body
        self._back = h11.Connection(h11.CLIENT)

    async def run(self) -> None:
        """Both directions at once. _NoAnswerError, OSError: there was none, and nothing was sent to the client."""
        inside = await connected(self._backend.port)
        async with inside:
            await _send(self._back, inside, self._request)
            failed: Exception | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._upload, inside, nursery.cancel_scope)
                try:
                    await self._download(inside)
                except (_NoAnswerError, h11.RemoteProtocolError, *BROKEN) as error:
                    failed = error
                nursery.cancel_scope.cancel()
            if failed is not None:
                raise self._judged(failed)
            if self._back.their_state is h11.SWITCHED_PROTOCOL:
                await self._switched(inside)

    def _judged(self, error: Exception) -> Exception:
        """What a broken exchange is for the caller: without a word of an answer, one that may be tried again."""
        unanswered = self._front.our_state is h11.SEND_RESPONSE
        return error if not unanswered or isinstance(error, OSError) else _NoAnswerError(str(error) or "it was closed")

    async def _upload(self, inside: trio.SocketStream, both: trio.CancelScope) -> None:
        """The request's body; then see whether the client stays, for an answer to nobody is no use."""
        try:
            while self._front.their_state is h11.SEND_BODY:
                event = await _next(self._front, self._client)
                if not isinstance(event, h11.Data | h11.EndOfMessage):
                    break
                self._body.begun = self._body.begun or isinstance(event, h11.Data)
                await _send(self._back, inside, event)
            if self._back.our_state is h11.SEND_BODY:
                await _send(self._back, inside, h11.EndOfMessage())
            await self._left()
        except (h11.LocalProtocolError, h11.RemoteProtocolError, *BROKEN):
            pass  # the instance answers before it has read all, or the client broke off: the answer says which
        else:
            both.cancel()

    async def _left(self) -> None:
        """Return when the client has closed its connection; never where it has sent its next request already."""
        await trio.lowlevel.wait_readable(self._client.socket)
        if await self._client.socket.recv(1, _PEEK):
            await trio.sleep_forever()

    async def _download(self, inside: trio.SocketStream) -> None:
        while True:
            event = await _next(self._back, inside)
            if isinstance(event, h11.ConnectionClosed):
                raise _NoAnswerError("it closed the connection")
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    await self._client.send_all(self._front.send(event))
                    return
                await _send(self._front, self._client, event)
            elif isinstance(event, h11.Response):
                headers = _without_hops(event.headers.raw_items())
                head = h11.Response(status_code=event.status_code, reason=event.reason, headers=headers)
                await _send(self._front, self._client, head)
            elif isinstance(event, h11.Data | h11.EndOfMessage):
                self._deployment.note_use()
                await _send(self._front, self._client, event)
                if isinstance(event, h11.EndOfMessage):
                    return
            else:
                raise _NoAnswerError("its answer broke off")

    async def _switched(self, inside: trio.SocketStream) -> None:
        """The connection speaks another protocol from here on."""
        early, late = self._front.trailing_data[0], self._back.trailing_data[0]
        with self._deployment.switched():
            if late:
                await self._client.send_all(late)
            if early:
                await inside.send_all(early)
            await pump_both(self._client, inside, self._deployment.awake, self._deployment.used)


def _without_hops(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer without those that speak of the connection to the instance."""
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


_PEEK = 0x2 | 0x40  # MSG_PEEK | MSG_DONTWAIT
