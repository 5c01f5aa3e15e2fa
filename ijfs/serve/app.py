"""The server as an ASGI application, put together of its parts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ijfs.live.model.records import NO_LIMITS, Limits, Network
from ijfs.sdk.repository import Repository
from ijfs.serve import errors
from ijfs.serve import limits as of_keys
from ijfs.serve.audit import Audit
from ijfs.serve.control import Control
from ijfs.serve.data import Data
from ijfs.serve.errors import ApiError
from ijfs.serve.gate import Gate
from ijfs.serve.keys import Keys, path_in
from ijfs.serve.records import Records
from ijfs.serve.sandboxes import Sandboxes
from ijfs.serve.telemetry import STATES, Telemetry
from ijfs.serve.templates import Templates
from ijfs.serve.upkeep import Upkeep
from ijfs_engine.errors import IjfsError


@dataclass(frozen=True)
class Settings:
    """How a server is started. `kernel`: the kernel spec of code interpreters; `home`: where sandboxes' programs start,
    and their HOME; `network`: their way out; `limits`: what each may take of the machine, where its template does not
    say."""

    kernel: str = "python3"
    home: str = "/root"
    network: Network = "none"
    limits: Limits = NO_LIMITS


class Server:
    """The ASGI application."""

    def __init__(self, repo: Repository, settings: Settings) -> None:
        records, self._telemetry = Records(repo.path), Telemetry()
        templates = Templates(repo, records, kernel=settings.kernel, home=settings.home, network=settings.network)
        self._sandboxes = Sandboxes(repo, records, templates, self._telemetry, settings.limits)
        control = Control(self._sandboxes, internet=settings.network != "none")
        self._control = Starlette(
            routes=[*control.routes(), Route("/metrics", self._metrics)],
            lifespan=self._lifespan,
            exception_handlers=dict.fromkeys((ApiError, IjfsError, HTTPException), errors.handle),
        )
        self._gate = Gate(
            self._control,
            Data(self._sandboxes),
            keys=Keys(path_in(repo.path)),
            audit=Audit(records.directory / "audit.log"),
            telemetry=self._telemetry,
            limits=of_keys.Limits(),
        )
        for state in STATES:
            self._telemetry.sandboxes.labels(state).set_function(partial(self._count, state))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._control(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/healthz":
            await PlainTextResponse("ok\n")(scope, receive, send)
        elif scope["type"] == "http":
            await self._gate(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Sandboxes outlive the server; commands that clients run in them do not."""
        await self._sandboxes.settle()
        async with Upkeep(self._sandboxes).going_on():
            yield
        for sandbox in self._sandboxes.all():
            await sandbox.envd.close()

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._telemetry.text())

    def _count(self, state: str) -> int:
        return sum(sandbox.record.state == state for sandbox in self._sandboxes.all())
