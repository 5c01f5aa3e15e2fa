"""The command line that runs something inside a sandbox (sandbox/enter.py). For the client and for a keeper's hooks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import msgspec

from ijfs.live.model.records import Process


def enter_line(
    program: Process,
    argv: Sequence[str],
    *,
    cwd: str | None,
    env: Mapping[str, str],
    session: bool,
    user: str | None = None,
    tell: int | None = None,
) -> list[str]:
    """For this machine: a process that runs `argv` in the namespaces of `program`, and has its exit status. `env`: over
    what that program has; `session`, `user`, `tell`: as enter.EnterRequest has them."""
    request = {"program": program, "argv": list(argv), "cwd": cwd, "env": dict(env)}
    request |= {"session": session, "user": user, "tell": tell}
    return [sys.executable, "-P", "-m", "ijfs.live.sandbox.enter", msgspec.json.encode(request).decode()]
