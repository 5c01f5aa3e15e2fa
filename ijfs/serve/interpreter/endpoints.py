"""The HTTP side of a sandbox's kernel: `POST /execute` and `/contexts`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from ijfs.sdk import aio
from ijfs.serve.bodies import body
from ijfs.serve.errors import not_here
from ijfs.serve.interpreter.kernel import Interpreter
from ijfs.serve.records import Context
from ijfs.serve.streaming import WhileWanted

PORT = 49999
LANGUAGES = (None, "", "python", "python3")


class ExecuteRequest(msgspec.Struct, frozen=True):
    """Run a cell."""

    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[str, str] | None = None


class ContextRequest(msgspec.Struct, frozen=True):
    """Make a context."""

    cwd: str | None = None
    language: str | None = None


def router(interpreter: Interpreter) -> Router:
    """The paths of one sandbox's kernel."""
    calls = Endpoints(interpreter)
    return Router(
        [
            Route("/health", calls.health),
            Route("/execute", calls.execute, methods=["POST"]),
            Route("/contexts", calls.contexts, methods=["GET"]),
            Route("/contexts", calls.create, methods=["POST"]),
            Route("/contexts/{ident}", calls.remove, methods=["DELETE"]),
            Route("/contexts/{ident}/restart", calls.restart, methods=["POST"]),
        ]
    )


class Endpoints:
    """The handlers."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    async def health(self, request: Request) -> Response:
        """Whether there is one."""
        return JSONResponse("OK")

    async def execute(self, request: Request) -> Response:
        """A cell's outputs, a JSON object a line, as they come."""
        wanted = await body(request, ExecuteRequest)
        _in_python(wanted.language)
        events = self._interpreter.execute(wanted.code, wanted.context_id, wanted.env_vars or {})
        return WhileWanted(_lines(events), media_type="application/x-ndjson")

    async def contexts(self, request: Request) -> Response:
        """All contexts."""
        found = await aio.in_thread(lambda: self._interpreter.contexts)
        return JSONResponse([_shown(context) for context in found])

    async def create(self, request: Request) -> Response:
        """A new one."""
        wanted = await body(request, ContextRequest)
        _in_python(wanted.language)
        return JSONResponse(_shown(await self._interpreter.create(wanted.cwd)))

    async def remove(self, request: Request) -> Response:
        """Let one go."""
        await self._interpreter.remove(request.path_params["ident"])
        return Response(status_code=204)

    async def restart(self, request: Request) -> Response:
        """Let go of one's variables."""
        await self._interpreter.restart(request.path_params["ident"])
        return Response(status_code=204)


def _in_python(language: str | None) -> None:
    if language not in LANGUAGES:
        raise not_here(f"a kernel for {language}: cells are Python")


def _shown(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for event in events:
        yield msgspec.json.encode(event) + b"\n"
