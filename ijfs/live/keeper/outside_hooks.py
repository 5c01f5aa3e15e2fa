"""Hooks that somebody gave for a program which knows nothing of ijfs (records.Hooks): run by its keeper, from outside.

model/hooks.py has their forms. Called by save.py and parking.py around a freeze, and by lifecycle.py once a program
runs.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import shlex
import socket
import subprocess
import time

import trio

from ijfs.live.errors import HookError, NotReadyError
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model.environment import INSTANCE_VARIABLE
from ijfs.live.model.hooks import HookRequest, request_of
from ijfs.live.model.records import Hooks
from ijfs.live.process.entering import enter_line
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.sandbox import Sandbox

LIMIT_S = 120.0
"""How long a hook around a save may take: a server lets running requests end, and gives memory back."""

PROBE_S = 10.0
"""How long one look at whether a program is ready may take."""

# Between two looks: a restored server answers within milliseconds, one that is loading for minutes is not disturbed.
PAUSES_S = (0.01, 0.02, 0.05, 0.1, 0.2)

_log = logging.getLogger("ijfs.keeper")


async def run(lines: tuple[str, ...], sandbox: Sandbox, name: str) -> None:
    """Run hooks one after the other. HookError at the first that fails."""
    for line in lines:
        failed = await in_thread(_failure, line, sandbox, name, LIMIT_S, waits=False)
        if failed:
            raise HookError(f"the hook `{line}` failed: {failed}")


async def run_all(lines: tuple[str, ...], sandbox: Sandbox, name: str) -> list[str]:
    """Run hooks one after the other, each in spite of those before it; a sentence for each that failed."""
    said = []
    for line in lines:
        try:
            await run((line,), sandbox, name)
        except HookError as error:
            _log.warning("%s", error)
            said.append(str(error))
    return said


async def wait_ready(hooks: Hooks, sandbox: Sandbox, name: str) -> None:
    """Return when every `ready` hook is right; NotReadyError when that takes too long, or the program ends before."""
    deadline = time.monotonic() + hooks.ready_s
    for line in hooks.ready:
        failed, looks = "it was not looked at", 0
        while failed:
            failed = await in_thread(_failure, line, sandbox, name, PROBE_S, waits=True)
            if failed and not sandbox.is_alive():
                raise NotReadyError(f"the program of `{name}` ended before it was ready")
            if failed and time.monotonic() > deadline:
                raise NotReadyError(f"`{name}` was not ready after {hooks.ready_s:g} s: `{line}`: {failed}")
            if failed:
                await trio.sleep(PAUSES_S[min(looks, len(PAUSES_S) - 1)])
            looks += 1


def _failure(line: str, sandbox: Sandbox, name: str, limit_s: float, *, waits: bool) -> str:
    """Run one hook; why it failed, "" where it did not."""
    request = request_of(line)
    if request is not None:
        return _ask(request, sandbox, limit_s)
    if line.startswith("file:"):
        path = line.removeprefix("file:")
        return _run_inside(["test", "-e", path] if waits else ["touch", "--", path], sandbox, name, limit_s)
    return _run_inside(["sh", "-c", line], sandbox, name, limit_s)


def _ask(request: HookRequest, sandbox: Sandbox, limit_s: float) -> str:
    headers = {"Host": f"127.0.0.1:{request.port}", "Connection": "close"}
    if request.body:
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection("127.0.0.1", request.port, timeout=limit_s)
    try:
        with contextlib.closing(connection):
            connection.sock = _socket_inside(sandbox, limit_s)
            connection.sock.connect(("127.0.0.1", request.port))
            connection.request(request.method, request.target, request.body.encode() or None, headers)
            answer = connection.getresponse()
            said = answer.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "" if 200 <= answer.status < 300 else f"{answer.status} {answer.reason}: {said}".strip(": \n")


def _socket_inside(sandbox: Sandbox, limit_s: float) -> socket.socket:
    with ns.in_network(sandbox.network_fd):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(limit_s)
    return sock


def _run_inside(argv: list[str], sandbox: Sandbox, name: str, limit_s: float) -> str:
    if sandbox.program is None or not sandbox.is_alive():
        return "the program has ended"
    line = enter_line(sandbox.program, argv, cwd="/", env={INSTANCE_VARIABLE: name}, session=True)
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return f"it took longer than {limit_s:g} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"exit status {done.returncode} of {shlex.join(argv)}"
