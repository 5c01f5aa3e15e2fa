"""One request to the keeper, one answer, over a connection of its own that never outlives two seconds.

Called by saving.py, hooks.py and magics.py. Connections are short because a freeze may cut one, or a restored
child may wake up holding one whose peer does not exist in its network namespace.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

GUEST_PORT = 4717
"""The keeper's port on the loopback of every sandbox; each sandbox has a network namespace of its own."""

ENVIRONMENT_VARIABLE = "IJFS_GUEST"
"""Set by the keeper to host:port; a program that has it is inside a sandbox."""

TIMEOUT_S = 2.0
"""For each step of one connection. The keeper answers at once: more than this means that nobody is there."""

_MAX_ANSWER = 64 << 20


class GuestError(RuntimeError):
    """The keeper refused, or there is none: what happened, and in `hint` what to do next.

    Not one of the engine's errors, because the program's Python need not have the engine. `kind` is the name
    of the error in the keeper ("" when the keeper did not answer).
    """

    def __init__(self, message: str, *, hint: str | None = None, kind: str = "") -> None:
        super().__init__(message if hint is None else f"{message} ({hint})")
        self.hint = hint
        self.kind = kind


class NoAnswer(GuestError):  # noqa: N818 - it is a state of the connection, and retried more often than shown
    """The connection was refused, cut or silent: ask again, since every request may be repeated."""


def in_sandbox() -> bool:
    """Whether this program was started by ijfs, so that `ijfs.save()` can work."""
    return ENVIRONMENT_VARIABLE in os.environ


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Send one request and return what its answer holds under "ok".

    Raises `GuestError` when not inside a sandbox or when the keeper says no, `NoAnswer` when it says nothing.
    """
    return granted(_exchange(address(), request))


def granted(line: bytes) -> dict[str, Any]:
    """What an answer holds under "ok"; raises as `ask` does."""
    answer = decode(line)
    if "error" in answer:
        raise _refusal(answer["error"])
    ok = answer.get("ok")
    if not isinstance(ok, dict):
        raise NoAnswer("the keeper's answer has neither 'ok' nor 'error'")
    return ok


def address() -> tuple[str, int]:
    """Where the keeper listens; `GuestError` when not inside a sandbox."""
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    if value is None:
        raise GuestError(
            "this program does not run in an ijfs sandbox, so it cannot be saved from inside",
            hint="start it with `ijfs run -- COMMAND`, or choose a kernel made by `ijfs kernel install`",
        )
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal():
        raise GuestError(f"{ENVIRONMENT_VARIABLE}={value!r} is not host:port")
    return host, int(port)


def _exchange(address: tuple[str, int], request: dict[str, Any]) -> bytes:
    try:
        with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            return read_line(connection)
    except OSError as error:
        raise NoAnswer(f"the keeper at {address[0]}:{address[1]} did not answer: {error}") from error


def read_line(connection: socket.socket) -> bytes:
    """Read up to the first newline, which is left out; ConnectionError if the peer closes before it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("the connection was closed in the middle of a line")
        line += piece
        if len(line) > _MAX_ANSWER:
            raise ConnectionError(f"a line of more than {_MAX_ANSWER} bytes")
    return bytes(line[:-1])


def decode(line: bytes) -> dict[str, Any]:
    """Parse one line as a JSON object; `NoAnswer` when it is none."""
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise NoAnswer(f"the keeper's answer is not JSON: {line[:80]!r}") from error
    if not isinstance(answer, dict):
        raise NoAnswer(f"the keeper's answer is not an object: {line[:80]!r}")
    return answer


def _refusal(error: Any) -> GuestError:
    if not isinstance(error, dict):
        return GuestError(f"the keeper refused: {error}")
    return GuestError(
        str(error.get("message", "the keeper refused")),
        hint=error.get("hint"),
        kind=str(error.get("type", "")),
    )
