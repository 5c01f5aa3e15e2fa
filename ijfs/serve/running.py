"""The server as a process: where it listens, and with which certificate. Called by `ijfs serve`."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path

import uvicorn

from ijfs.live.errors import CommandError
from ijfs.serve.app import Server

KEEP_ALIVE_S = 300
"""How long a connection that nobody uses stays open. Longer than clients keep theirs (90 s are usual): one that was
closed just as a client sent something is an error there, and uvicorn's 5 s made it one in some hundred calls."""
GRACE_S = 10
"""How long calls that are under way may take when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. CommandError."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise CommandError(f"cannot listen at {host}:{port}: {(error.strerror or '').lower()}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(server: Server, at: socket.socket, *, certificate: Path | None = None, key: Path | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        server,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    # uvicorn ends as it should, and then raises the signal again.
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        uvicorn.Server(config).run(sockets=[at])
