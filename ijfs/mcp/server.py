"""How the tools are served: over this process's standard input and output, or over HTTP. Called by `ijfs mcp`.

Whoever may call the tools may do in the sandboxes what they like, and sandboxes are no jail. So HTTP wants a bearer
token, also on the loopback: every user of the machine reaches that.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

from ijfs.live.errors import CommandError
from ijfs.mcp.sessions import Sessions
from ijfs.mcp.tools import server

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def serve_stdio(sessions: Sessions) -> None:
    """Serve one client on standard input and output, until it closes them."""
    anyio.run(server(sessions).run_stdio_async)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. CommandError."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise CommandError(f"cannot listen at {host}:{port}: {(error.strerror or '').lower()}") from error


def serve_http(sessions: Sessions, at: socket.socket, token: str) -> None:
    """Serve any number of clients that have the token at `/mcp`, until SIGINT or SIGTERM."""
    import uvicorn

    host = at.getsockname()[0]
    app = with_token(server(sessions).streamable_http_app(host=host), token)
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[at])


def with_token(app: App, token: str) -> App:
    """The application behind a bearer token."""
    expected = f"Bearer {token}".encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _has(scope, expected):
            await send({"type": "http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Bearer")]})
            await send({"type": "http.response.body", "body": b"the header `Authorization: Bearer TOKEN` is wanted\n"})
            return
        await app(scope, receive, send)

    return guarded


def _has(scope: Scope, expected: bytes) -> bool:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    return len(given) == 1 and hmac.compare_digest(given[0], expected)


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(32)
