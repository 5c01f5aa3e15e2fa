"""One sandbox's envd: an ASGI application of its two services and its plain HTTP paths. Made and led to by data.py."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from ijfs.serve.envd import filesystem, processes
from ijfs.serve.envd.commands import Commands
from ijfs.serve.envd.transfers import Transfers
from ijfs.serve.envd.watching import Watchers

PORT = 49983
VERSION = "0.6.4"
"""Of E2B's envd, whose calls are answered as it answers them: the clients look at it before some calls."""


class Envd:
    """An ASGI application. `close` ends what clients have started in it."""

    def __init__(self, repo: Path, name: str) -> None:
        self.commands = Commands(repo, name)
        self._watchers = Watchers()
        self._services = [processes.service(self.commands), filesystem.service(repo, name, self._watchers)]
        transfers = Transfers(repo, name)
        self._http = Router(
            [
                Route("/health", _health),
                Route("/files", transfers.download, methods=["GET"]),
                Route("/files", transfers.upload, methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for service in self._services:
            if scope["path"].startswith(f"{service.path}/"):
                await service(scope, receive, send)
                return
        await self._http(scope, receive, send)

    async def close(self) -> None:
        """Kill all commands, end all watchers."""
        self._watchers.close()
        await self.commands.end()


async def _health(request: Request) -> Response:
    return Response(status_code=204)
