"""What each request passes on its way in: whose key it has, how much that may ask for, what is counted and noted."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ijfs.sdk import aio
from ijfs.serve import errors
from ijfs.serve.audit import Audit
from ijfs.serve.data import Data
from ijfs.serve.errors import ApiError
from ijfs.serve.keys import KeyRecord, Keys
from ijfs.serve.limits import Limits
from ijfs.serve.sandboxes import Sandbox
from ijfs.serve.telemetry import Telemetry
from ijfs_engine.errors import IjfsError

PATHS = ("/execute", "/contexts", "/files", "/health")
SERVICES = ("/process.Process/", "/filesystem.Filesystem/")
CONTROL = ("sandboxes", "snapshots", "templates", "metrics")
ACTIONS = ("timeout", "refreshes", "connect", "resume", "pause", "fork", "metrics", "logs", "snapshots")
READS = ("/List", "/ListDir", "/Stat", "/Connect", "/WatchDir", "/GetWatcherEvents")
"""Calls that change nothing, though they are POSTs."""


class Gate:
    """An ASGI application in front of both planes."""

    def __init__(
        self, control: ASGIApp, data: Data, *, keys: Keys, audit: Audit, telemetry: Telemetry, limits: Limits
    ) -> None:
        self._control, self._data = control, data
        self._keys, self._audit, self._telemetry, self._limits = keys, audit, telemetry, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, answer = Request(scope), Answer(send)
        began = time.monotonic()
        with self._telemetry.request(_name(request)) as asked:
            try:
                await self._answered(request, scope, receive, answer)
            except (ApiError, IjfsError) as error:
                if answer.status is None:
                    await (await errors.handle(request, error))(scope, receive, answer)
            finally:
                asked.answered(answer.status)
                if _changes(request):
                    await aio.in_thread(self._note, request, answer, time.monotonic() - began)

    async def _answered(self, request: Request, scope: Scope, receive: Receive, answer: Answer) -> None:
        """ApiError, IjfsError: what is still to be said."""
        state = scope.setdefault("state", {})
        sandbox = self._data.find(request) if self._data.is_meant(request) else None
        key = self._key(request, sandbox)
        state["key"] = key
        state["sandbox"] = sandbox.record.id if sandbox is not None else ""
        with self._limits.call(key):
            await self._planes(sandbox, scope, receive, answer)

    async def _planes(self, sandbox: Sandbox | None, scope: Scope, receive: Receive, answer: Answer) -> None:
        if sandbox is None:
            await self._control(scope, receive, answer)
        else:
            await self._data(sandbox, scope, receive, answer)

    def _key(self, request: Request, sandbox: Sandbox | None) -> KeyRecord:
        """Whose key a request came with; one for a sandbox counts as its owner's. ApiError 401."""
        if sandbox is not None:
            found = self._keys.named(sandbox.record.owner)
        else:
            kind, _, word = request.headers.get("authorization", "").partition(" ")
            given = request.headers.get("x-api-key") or (word if kind.lower() == "bearer" else "")
            found = self._keys.find(given)
        if found is None:
            raise ApiError(401, "a key is wanted, in the header X-API-Key or `Authorization: Bearer KEY`")
        return found

    def _note(self, request: Request, answer: Answer, seconds: float) -> None:
        key = getattr(request.state, "key", None)
        self._audit.write(
            key=key.name if key is not None else "",
            call=f"{request.method} {request.url.path}",
            sandbox=getattr(request.state, "sandbox", ""),
            client=request.client.host if request.client is not None else "",
            status=answer.status,
            seconds=round(seconds, 3),
        )


class Answer:
    """Where an answer goes, and with which status it began; None before that."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _changes(request: Request) -> bool:
    return request.method not in ("GET", "HEAD") and not request.url.path.endswith(READS)


def _name(request: Request) -> str:
    """What metrics call a request: without the ids in it, and one name for all that nobody knows."""
    path = request.url.path
    if path.startswith(SERVICES):
        return path.removeprefix("/")
    for known in PATHS:
        if path.startswith(known):
            return known.removeprefix("/")
    words = [word for word in path.split("/")[1:] if word not in ("v2", "v3")]
    if words[0] not in CONTROL:
        return "unknown"
    return f"{request.method} {words[0]}{f' {words[2]}' if words[2:] and words[2] in ACTIONS else ''}"
