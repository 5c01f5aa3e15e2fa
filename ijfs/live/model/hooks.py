"""The lines by which somebody gives hooks for a program that knows nothing of ijfs (records.Hooks); their forms.

    POST http://127.0.0.1:8000/sleep?level=1 BODY    a request to a port inside, with a body (JSON) or without; any 2xx
    http://127.0.0.1:8000/health                     answer is right
    file:/run/ready                                  a file inside: `ready` waits for it, the others make it
    anything else                                    a command inside, run by its `sh`; exit status 0 is right

Looked at by client/api.py before anything is started, and by keeper/outside_hooks.py, which runs them.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from ijfs.live.errors import CommandError
from ijfs.live.model.records import Hooks

_REQUEST = re.compile(r"(?:(?P<method>[A-Z]+)\s+)?(?P<url>http://\S+)(?:\s+(?P<body>.*))?", re.DOTALL)


class HookRequest(NamedTuple):
    """An HTTP request to a port inside; `target` is the path with its query."""

    method: str
    port: int
    target: str
    body: str


def request_of(line: str) -> HookRequest | None:
    """The request that a line stands for, None for another kind of hook; CommandError where it leads elsewhere."""
    found = _REQUEST.fullmatch(line.strip())
    if found is None:
        return None
    url = urlsplit(found["url"])
    if url.hostname not in ("127.0.0.1", "localhost"):
        raise CommandError(f"the hook `{line}` leads out of the sandbox: only 127.0.0.1 is inside")
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return HookRequest(found["method"] or "GET", url.port or 80, target, found["body"] or "")


def check_hooks(hooks: Hooks) -> None:
    """CommandError for a line that nobody can run."""
    for line in (*hooks.before_save, *hooks.after_save, *hooks.after_restore, *hooks.ready):
        if not line.strip():
            raise CommandError("a hook is empty")
        request_of(line)
