"""The control plane: sandboxes, their time, snapshots, templates. Each handler is one call of E2B's clients."""

from __future__ import annotations

import datetime
import math
import os
import shutil
from collections.abc import Awaitable, Callable
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec
import psutil
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ijfs.sdk import aio
from ijfs.serve import errors
from ijfs.serve.bodies import body
from ijfs.serve.control_types import (
    Connect,
    Fork,
    Lifecycle,
    Metrics,
    NewSandbox,
    NewSnapshot,
    Pause,
    SandboxDetail,
    SandboxMade,
    SandboxShown,
    SnapshotShown,
    Timeout,
)
from ijfs.serve.errors import ApiError, not_here
from ijfs.serve.idempotency import Repeats
from ijfs.serve.keys import KeyRecord
from ijfs.serve.records import SandboxRecord, SnapshotRecord
from ijfs.serve.sandboxes import MOST_FORKS, Sandbox, Sandboxes
from ijfs.serve.usage import Usage
from ijfs_engine.errors import IjfsError

MOST_TIMEOUT_S = 30 * 24 * 3600
MOST_LISTED = 100
DEFAULT_REFRESH_S = 15
MOST_LOG_LINES = 1000
_BUILDS = "templates that clients build: `ijfs tag` names a snapshot, which is one"
ABSENT = {
    **dict.fromkeys(
        [f"{version}/templates{rest}" for version in ("", "/v2", "/v3") for rest in ("", "/{rest:path}")], _BUILDS
    ),
    **dict.fromkeys(["/volumes", "/volumes/{rest:path}", "/volumecontent/{rest:path}"], "volumes"),
    **dict.fromkeys(["/secrets", "/secrets/{rest:path}"], "a store of secrets"),
    "/v2/sandboxes/{sandbox}/logs": "logs by page: `GET /sandboxes/ID/logs` has them",
}
"""What E2B's control plane has and this one does not, by path."""
ALL_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
Handler = Callable[[Request], Awaitable[Response]]


class Control:
    """The handlers. `internet`: whether sandboxes of this server have a way out."""

    def __init__(self, sandboxes: Sandboxes, *, internet: bool) -> None:
        self._sandboxes, self._internet = sandboxes, internet
        self._repeats, self._usage = Repeats(), Usage()

    def routes(self) -> list[Route]:
        """All paths. What E2B has and this server has not is told so at its path, too."""
        one = "/sandboxes/{sandbox}"
        return [
            Route("/sandboxes", self.create, methods=["POST"]),
            Route("/v2/sandboxes", self.create, methods=["POST"]),
            Route("/sandboxes", self.list, methods=["GET"]),
            Route("/v2/sandboxes", self.list, methods=["GET"]),
            Route("/sandboxes/metrics", self.all_metrics, methods=["GET"]),
            Route(one, self.show, methods=["GET"]),
            Route(one, self.kill, methods=["DELETE"]),
            Route(f"{one}/timeout", self.timeout, methods=["POST"]),
            Route(f"{one}/refreshes", self.refresh, methods=["POST"]),
            Route(f"{one}/connect", self.connect, methods=["POST"]),
            Route(f"/v2{one}/connect", self.connect, methods=["POST"]),
            Route(f"{one}/resume", self.connect, methods=["POST"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/fork", self.fork, methods=["POST"]),
            Route(f"{one}/metrics", self.metrics, methods=["GET"]),
            Route(f"{one}/logs", self.logs, methods=["GET"]),
            Route(f"{one}/snapshots", self.snapshot, methods=["POST"]),
            Route("/snapshots", self.snapshots, methods=["GET"]),
            Route("/templates/{name:path}", self.delete_snapshot, methods=["DELETE"]),
            Route(f"{one}/network", _absent("a network that is changed later"), methods=["PUT"]),
            *(Route(path, _absent(what), methods=ALL_METHODS) for path, what in ABSENT.items()),
        ]

    # -- sandboxes --------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """A new sandbox."""
        wanted = await body(request, NewSandbox)
        self._refuse_what_is_not_here(wanted)
        timeout_s, key = _timeout(wanted.timeout), key_of(request)

        async def create() -> Response:
            sandbox = await self._sandboxes.create(
                key,
                wanted.template,
                timeout_s=timeout_s,
                env=wanted.env,
                metadata=wanted.metadata,
                at_the_end="pause" if wanted.auto_pause else "kill",
                resumes=bool((wanted.auto_resume or {}).get("enabled")),
            )
            request.state.sandbox = sandbox.record.id
            return _answer(_made(sandbox), 201)

        repeated = request.headers.get("idempotency-key")
        return await self._repeats.once(key.name, repeated, msgspec.json.encode(wanted), create)

    def _refuse_what_is_not_here(self, wanted: NewSandbox) -> None:
        if wanted.internet and not self._internet:
            raise not_here("a way out for sandboxes: it was started with `--network none`")
        if wanted.internet is False and self._internet:
            raise not_here("sandboxes without a way out: it was started with `--network slirp4netns`")
        if wanted.auto_pause and not wanted.auto_pause_memory:
            raise not_here("a pause that keeps files alone")
        for what, given in (
            ("network rules", wanted.network),
            ("an MCP gateway in sandboxes (`ijfs mcp` is one outside)", wanted.mcp),
            ("workload identities", wanted.iam),
            ("volumes", wanted.volumes),
        ):
            if given:
                raise not_here(what)

    async def list(self, request: Request) -> Response:
        """Those of this key, newest first."""
        query = request.query_params
        found = [box for box in self._sandboxes.all(key_of(request).name) if box.record.state != "starting"]
        wanted = dict(parse_qsl(query.get("metadata", "")))
        states = [state for state in query.get("state", "").split(",") if state]
        after = _time(query.get("startedAfter"))
        found = [
            box
            for box in found
            if wanted.items() <= box.record.metadata.items()
            and (not states or _state(box.record) in states)
            and (after is None or box.record.started_ns >= after)
            and query.get("template") in (None, box.record.template)
        ]
        found.sort(key=lambda box: (box.record.started_ns, box.record.id), reverse=query.get("order") != "asc")
        page, headers = _page(found, request)
        return _answer([self._shown(box) for box in page], headers=headers)

    async def show(self, request: Request) -> Response:
        """One."""
        box = self._find(request)
        detail = SandboxDetail(
            **{name: getattr(self._shown(box), name) for name in SandboxShown.__struct_fields__},
            token=box.record.token,
            internet=self._internet,
            lifecycle=Lifecycle(box.record.resumes, box.record.at_the_end),
        )
        return _answer(detail)

    async def kill(self, request: Request) -> Response:
        """End one."""
        box = self._find(request)
        await self._sandboxes.kill(box)
        self._usage.forget(box.record.id)
        return Response(status_code=204)

    async def timeout(self, request: Request) -> Response:
        """Its time is over so many seconds from now."""
        self._sandboxes.set_end(self._find(request), _timeout((await body(request, Timeout)).timeout))
        return Response(status_code=204)

    async def refresh(self, request: Request) -> Response:
        """The same, unless that would be sooner."""
        wanted = (await body(request, dict[str, Any])).get("duration", DEFAULT_REFRESH_S)
        self._sandboxes.set_end(self._find(request), _timeout(int(wanted)), only_later=True)
        return Response(status_code=204)

    async def connect(self, request: Request) -> Response:
        """Find one again, resumed where it was paused."""
        wanted, box = await body(request, Connect), self._find(request)
        if wanted.memory is False and box.record.state == "paused":
            raise not_here("a restart from files alone")
        resumed = await self._sandboxes.resume(box)
        self._sandboxes.set_end(box, _timeout(wanted.timeout), only_later=not resumed)
        return _answer(_made(box), 201 if resumed else 200)

    async def pause(self, request: Request) -> Response:
        """Save one and end it until it is resumed."""
        wanted, box = await body(request, Pause), self._find(request)
        if not wanted.memory:
            raise not_here("a pause that keeps files alone")
        await self._sandboxes.pause(box)
        return Response(status_code=204)

    async def fork(self, request: Request) -> Response:
        """Live copies of one."""
        wanted, box = await body(request, Fork), self._find(request)
        if not 1 <= wanted.count <= MOST_FORKS:
            raise ApiError(400, f"a fork makes 1 to {MOST_FORKS} copies")
        made = await self._sandboxes.fork(box, key_of(request), wanted.count, _timeout(wanted.timeout))
        return _answer([_forked(copy) for copy in made], 201)

    async def metrics(self, request: Request) -> Response:
        """What one takes just now; nothing of a paused one."""
        box = self._find(request)
        return _answer([await self._measured(box)] if box.record.state == "running" else [])

    async def all_metrics(self, request: Request) -> Response:
        """The same of several."""
        wanted = request.query_params.get("sandbox_ids", "").split(",")
        boxes = [box for box in self._sandboxes.all(key_of(request).name) if box.record.id in wanted]
        running = [box for box in boxes if box.record.state == "running"]
        return _answer({"sandboxes": {box.record.id: await self._measured(box) for box in running}})

    async def _measured(self, box: Sandbox) -> Metrics:
        return await aio.in_thread(lambda: self._usage.of(box.box.info))

    async def logs(self, request: Request) -> Response:
        """What its first process wrote."""
        box = self._find(request)
        lines = (await aio.in_thread(box.box.logs)).splitlines()[-MOST_LOG_LINES:]
        at = datetime.datetime.now(datetime.UTC).isoformat()
        entries = [{"timestamp": at, "message": line, "level": "info", "fields": {}} for line in lines]
        return _answer({"logs": [{"timestamp": at, "line": line} for line in lines], "logEntries": entries})

    # -- snapshots --------------------------------------------------------------------------------------------------

    async def snapshot(self, request: Request) -> Response:
        """Save one under a name."""
        wanted, box = await body(request, NewSnapshot), self._find(request)
        if wanted.memory is False:
            raise not_here("a snapshot of files alone")
        return _answer(_snapshot(await self._sandboxes.snapshot(box, wanted.name)), 201)

    async def snapshots(self, request: Request) -> Response:
        """Those of this key, newest first."""
        query = request.query_params
        found = [
            record
            for record in self._sandboxes.snapshots(key_of(request).name)
            if query.get("sandboxID") in (None, record.sandbox)
            and (query.get("name") is None or query["name"] in record.names)
        ]
        page, headers = _page(found, request)
        return _answer([_snapshot(record) for record in page], headers=headers)

    async def delete_snapshot(self, request: Request) -> Response:
        """Let go of one, by its id or name."""
        await self._sandboxes.delete_snapshot(request.path_params["name"], key_of(request).name)
        return Response(status_code=204)

    def _find(self, request: Request) -> Sandbox:
        return self._sandboxes.find(request.path_params["sandbox"], key_of(request).name)

    def _shown(self, box: Sandbox) -> SandboxShown:
        record, limits = box.record, box.record.limits
        return SandboxShown(
            template=record.template,
            id=record.id,
            started=_moment(record.started_ns),
            ends=_moment(record.ends_ns),
            cpus=math.ceil(limits.cpus or os.cpu_count() or 1),
            memory_mb=(limits.memory or psutil.virtual_memory().total) >> 20,
            disk_mb=shutil.disk_usage(box.box.repo).total >> 20,
            state=_state(record),
            metadata=record.metadata,
        )


def _absent(what: str) -> Handler:
    async def refuse(request: Request) -> Response:
        return not_here(what).response()

    return refuse


def key_of(request: Request) -> KeyRecord:
    """The key that the request came with (app.py has looked)."""
    found: KeyRecord = request.state.key
    return found


def _state(record: SandboxRecord) -> Literal["running", "paused"]:
    """As clients know it."""
    return "paused" if record.is_paused else "running"


def _timeout(seconds: int) -> float:
    if not 0 <= seconds <= MOST_TIMEOUT_S:
        raise ApiError(400, f"a timeout has 0 to {MOST_TIMEOUT_S} seconds")
    return float(seconds)


def _answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _made(box: Sandbox) -> SandboxMade:
    record = box.record
    return SandboxMade(template=record.template, id=record.id, token=record.token, traffic_token=record.traffic_token)


def _forked(made: Sandbox | IjfsError) -> dict[str, Any]:
    if isinstance(made, IjfsError):
        error = errors.of(made)
        return {"error": {"code": error.status, "message": str(error)}}
    return {"sandbox": _made(made)}


def _snapshot(record: SnapshotRecord) -> SnapshotShown:
    return SnapshotShown(record.id, list(record.names))


def _moment(ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC)


def _time(given: str | None) -> float | None:
    """An ISO 8601 time, in nanoseconds."""
    if given is None:
        return None
    try:
        return datetime.datetime.fromisoformat(given).timestamp() * 1e9
    except ValueError:
        raise ApiError(400, f"`{given}` is no time") from None


def _page(found: list[Any], request: Request) -> tuple[list[Any], dict[str, str]]:
    """So many of them from where the last page ended, and the header that says where this one ends."""
    try:
        at = int(request.query_params.get("nextToken") or 0)
        most = min(int(request.query_params.get("limit") or MOST_LISTED), MOST_LISTED)
    except ValueError:
        raise ApiError(400, "`limit` and `nextToken` are numbers") from None
    following = at + most
    return found[at:following], {"x-next-token": str(following)} if following < len(found) else {}
