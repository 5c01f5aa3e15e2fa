"""Users without root: their `ijfs` hands some verbs to a server that runs as root, over a Unix socket (docs/serve.md).

Both ends of that are here: `handed_over` in the user's process, and `Caller`, for whom root's process (for_user.py)
acts. Whatever a caller says is a stranger's word in a process of root: only the verbs and options of `ALLOWED` are
taken, none of which names a file of this machine. Standard library only, as it is on the way of every call without
root.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

SOCKET = "/run/ijfs/users.sock"
VARIABLE = "IJFS_SOCKET"
"""Names another socket; empty: none is asked."""

_COMMON = {"as_json", "quiet", "verbose"}
ALLOWED: dict[str, set[str]] = {
    "run": {
        "name",
        "network",
        "ports",
        "env",
        "ttl",
        "idle",
        "on_idle",
        "replace",
        "detach",
        "tty",
        "interactive",
        "forget",
        "keys",
        "command",
    },
    "attach": {"name", "keys"},
    "exec": {"name", "command", "interactive", "tty"},
    "save": {"name", "message", "stop", "branch", "verify", "no_wait"},
    "restore": {"snapshot", "name", "eager", "on_demand", "replace", "save_first", "yes", "wait", "same_random"},
    "fork": {"source", "count", "names", "message", "eager", "on_demand", "same_random"},
    "park": {"name", "disk"},
    "wake": {"name"},
    "ps": {"every"},
    "stop": {"names", "every", "forget", "ended", "timeout"},
    "logs": {"name", "follow", "lines", "earlier"},
    "log": {"snapshot", "limit"},
    "tree": {"name", "every", "plain"},
    "rm": {"names", "snapshots", "force"},
}
"""What is done for a user without root: verbs, and of each the parameters that may be given."""

LENGTH = struct.Struct("!I")
STARTING = ("run", "restore", "fork", "wake")
"""Verbs after which there is a program more, or several."""
FIRST_PORT = 1024
"""Of those that a user may listen at."""


@dataclass(frozen=True)
class Caller:
    """A user for whom root acts: who it is, and what its process had. `repo` is that user's repository;
    `programs`: how many may be live in it at a time (0: no limit)."""

    uid: int
    repo: Path
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    programs: int = 0

    def check(self, ctx: click.Context) -> None:
        """click.UsageError for a verb or option that is not done for users."""
        import click

        verb = ctx.info_name or ""
        allowed = ALLOWED.get(verb, set()) | _COMMON
        for param in ctx.command.params:
            given = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE
            if verb not in ALLOWED or (given and param.name not in allowed):
                what = f"`ijfs {verb}`" if verb not in ALLOWED else f"{param.opts[0]} of `ijfs {verb}`"
                raise click.UsageError(f"{what} is for root: a server of other users does not do it for them")
        if self.programs and verb in STARTING:
            self._require_room(ctx.params)
        for port in ctx.params.get("ports", ()):
            if port.address != "127.0.0.1" or 0 < port.host < FIRST_PORT:
                raise click.UsageError(f"a user may listen at 127.0.0.1, from port {FIRST_PORT} on")

    def _require_room(self, given: Mapping[str, Any]) -> None:
        """click.UsageError where there would be too many programs. Calls that look at the same moment may each find
        the last place free."""
        import click

        from ijfs.live.client.api import list_instances

        there = sum(info.status == "running" for info in list_instances(self.repo))
        wanted = max(given.get("count") or 1, len((given.get("names") or "").split(",")))
        if there + wanted > self.programs and not given.get("replace"):
            raise click.UsageError(f"{there} programs of yours are live, and {self.programs} may be at a time")

    def fields(self, given: Mapping[str, str]) -> dict[str, Any]:
        """What of an InstanceSpec says that a program is this user's."""
        return {"user": str(self.uid), "cwd": self.cwd, "inherit_env": False, "env": {**self.env, **given}}


def handed_over(argv: Sequence[str]) -> int | None:
    """The exit code of a call that the server of users has done; None where it is to be done here."""
    path = os.environ.get(VARIABLE, SOCKET)
    verb = next((word for word in argv if not word.startswith("-")), "")
    elsewhere = "IJFS_REPO" in os.environ or any(word in ("-r", "--repo") for word in argv)
    if os.geteuid() == 0 or not path or verb not in ALLOWED or elsewhere or "--help" in argv or "-h" in argv:
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
        except OSError:
            return None
        return _done(server, {"argv": list(argv), "cwd": os.getcwd(), "env": dict(os.environ)})


def _done(server: socket.socket, request: Mapping[str, Any]) -> int:
    body = json.dumps(request).encode()
    socket.send_fds(server, [LENGTH.pack(len(body))], [0, 1, 2])
    server.sendall(body)
    with _signals_to(server):
        answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
    if not answer:
        print("ijfs: the server of users broke off", file=sys.stderr)
        return 1
    told = json.loads(answer)
    if "refused" in told:
        print(f"ijfs: {told['refused']}", file=sys.stderr)
    return int(told["code"])


@contextmanager
def _signals_to(server: socket.socket) -> Iterator[None]:
    """What ends this process ends the call: it is told, and answers."""

    def tell(number: int, frame: FrameType | None) -> None:
        server.send(bytes([number]))

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)
    before = {number: signal.signal(number, tell) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
