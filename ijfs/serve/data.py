"""The data plane: each request is for one sandbox, whose envd or interpreter answers it.

One address serves all sandboxes. A request says which it means by the headers `E2b-Sandbox-Id` and `-Port`, by its host
name (`PORT-ID.anything`), or, of a file's signed URL, by the signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ijfs.sdk import aio
from ijfs.serve.envd import daemon
from ijfs.serve.errors import ApiError, not_here
from ijfs.serve.interpreter import endpoints
from ijfs.serve.sandboxes import Sandbox, Sandboxes

_HOST = re.compile(r"(\d+)-(s[0-9a-f]{20})\.")
_OPERATIONS = {"GET": "read", "POST": "write"}


class Data:
    """Finds a request's sandbox, and hands the request to it."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    def is_meant(self, request: Request) -> bool:
        """Whether a request is for a sandbox."""
        return "e2b-sandbox-id" in request.headers or bool(_host(request)) or "signature" in request.query_params

    def find(self, request: Request) -> Sandbox:
        """The sandbox that is meant, which the caller may work in. ApiError 502 where there is none (as E2B's proxy
        says it), 401 where the token is another."""
        if "signature" in request.query_params:
            return self._signed(request)
        host = _host(request)
        ident = request.headers.get("e2b-sandbox-id") or (host[2] if host else "")
        try:
            sandbox = self._sandboxes.find(ident)
        except ApiError as error:
            raise ApiError(502, str(error)) from None
        if not _has_token(request, sandbox):
            raise ApiError(401, "the header X-Access-Token does not open this sandbox")
        return sandbox

    def _signed(self, request: Request) -> Sandbox:
        """The sandbox whose token a file's URL was signed with."""
        expiration = request.query_params.get("signature_expiration")
        if expiration is not None and not (expiration.isdecimal() and int(expiration) >= time.time()):
            raise ApiError(401, "this URL is not valid any more")
        for sandbox in self._sandboxes.all():
            if hmac.compare_digest(_signature(request, sandbox.record.token), request.query_params["signature"]):
                return sandbox
        raise ApiError(401, "the URL's signature opens no sandbox")

    async def __call__(self, sandbox: Sandbox, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the sandbox answer. ApiError 502 where it is paused or its program has ended."""
        await self._awake(sandbox)
        request = Request(scope)
        host = _host(request)
        port = request.headers.get("e2b-sandbox-port") or (host[1] if host else str(daemon.PORT))
        if port == str(daemon.PORT):
            await sandbox.envd(scope, receive, send)
        elif port == str(endpoints.PORT):
            await sandbox.code(scope, receive, send)
        else:
            raise not_here(f"a way to port {port} of a sandbox: `ijfs restore -p` makes one")

    async def _awake(self, sandbox: Sandbox) -> None:
        if sandbox.record.is_paused and sandbox.record.resumes:
            await self._sandboxes.resume(sandbox)
        if sandbox.record.state != "running" or not await aio.in_thread(lambda: sandbox.box.running):
            state = "paused" if sandbox.record.is_paused else "not running"
            raise ApiError(502, f"sandbox {sandbox.record.id} was not found: it is {state}")


def _host(request: Request) -> re.Match[str] | None:
    return _HOST.match(request.headers.get("host", ""))


def _has_token(request: Request, sandbox: Sandbox) -> bool:
    given = request.headers.get("x-access-token", ""), request.headers.get("e2b-traffic-access-token", "")
    wanted = sandbox.record.token, sandbox.record.traffic_token
    return any(hmac.compare_digest(g.encode(), w.encode()) for g, w in zip(given, wanted, strict=True))


def _signature(request: Request, token: str) -> str:
    """As E2B's clients sign the URL of a file."""
    query = request.query_params
    words = [query.get("path", ""), _OPERATIONS.get(request.method, ""), query.get("username", ""), token]
    if "signature_expiration" in query:
        words.append(query["signature_expiration"])
    digest = hashlib.sha256(":".join(words).encode()).digest()
    return f"v1_{base64.b64encode(digest).decode().rstrip('=')}"
