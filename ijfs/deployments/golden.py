"""The golden answer: what a server said to one request when its snapshot was made, compared after each restore."""

from __future__ import annotations

import http.client
import json
from typing import Any

from ijfs.live.errors import CommandError, HookError
from ijfs.live.model.hooks import request_of

LIMIT_S = 60.0

VOLATILE = frozenset({"id", "created", "system_fingerprint"})
"""What differs between two equal answers of an OpenAI-compatible server."""


def check(line: str) -> None:
    """CommandError for what is no request."""
    if line and request_of(line) is None:
        raise CommandError(f"`{line}` is no request: write `POST http://127.0.0.1:8000/v1/completions {{…}}`")


def answer_of(line: str, port: int) -> str:
    """What the server that is reached at `port` answers to that request, without what differs each time. HookError."""
    request = request_of(line)
    assert request is not None
    headers = {"Content-Type": "application/json"} if request.body else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request(request.method, request.target, request.body.encode() or None, headers)
        answer = connection.getresponse()
        return f"{answer.status} {_steady(answer.read().decode(errors='replace'))}"
    except (OSError, http.client.HTTPException) as error:
        raise HookError(f"no answer to `{line}`: {error}") from error
    finally:
        connection.close()


def _steady(text: str) -> str:
    try:
        return json.dumps(_without(json.loads(text)), sort_keys=True)
    except ValueError:
        return text


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner) for name, inner in value.items() if name not in VOLATILE}
    return [_without(inner) for inner in value] if isinstance(value, list) else value
