"""What doctor says of sockets and pipes that lead out of a program, and that it knows what a save refuses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ijfs.live.checks
from ijfs.live.checks import sockets
from ijfs.live.checks.result import CheckResult
from ijfs.live.criu.sentences import KNOWN

pytestmark = pytest.mark.root

WAIT = "print('up', flush=True); input()"


def checked(command: list[str], *handed: socket.socket) -> list[CheckResult]:
    """What is found in a Python program that has these sockets and waits; both its pipes lead to this test."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    inherited = [sock.fileno() for sock in handed]
    with subprocess.Popen(command, pass_fds=inherited, text=True, **pipes) as program:  # type: ignore[call-overload]
        assert program.stdout.readline() == "up\n"
        found = list(sockets.of_program(program.pid))
        program.communicate("\n")
    assert [row.outcome for row in found if row.check == "pipe"] == ["warn", "warn"]
    assert all(f"shares a pipe with process {os.getpid()} " in row.evidence for row in found if row.check == "pipe")
    return [row for row in found if row.check != "pipe"]


def test_a_connection_to_a_process_outside_is_named() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        (found,) = checked([sys.executable, "-c", WAIT], theirs)
        assert (found.check, found.outcome) == ("socket", "refuse")
        assert f"file descriptor {theirs.fileno()} is connected to process {os.getpid()} (" in found.evidence


def test_sockets_of_another_network_are_named() -> None:
    with socket.socket() as stream, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
        found = checked(["unshare", "-n", sys.executable, "-c", WAIT], stream, netlink)
    assert [row.outcome for row in found] == ["refuse", "refuse"]
    assert all(row.evidence.endswith("is a socket of a network outside its sandbox") for row in found)


def test_a_programs_own_sockets_are_fine() -> None:
    code = "import os, socket; s = socket.socketpair(); t = socket.socket(); u = socket.socket(type=2); p = os.pipe();"
    assert checked([sys.executable, "-c", code + WAIT]) == []


CHECKED = {
    "Can't dump nested": "nested sandbox",
    "Can't restore sub-task in NS": "nested sandbox",
    "Unknown shit": "memory",
    "Can't get rlimit": "user",
    "OOM storing pipe": "pipes",
    "Unknown socket collected": "socket",
    "Unsupported proto": "socket",
    "Can't lookup mount=": "open file",
    "Can't dump file": "open file",
    "Unseizable non-zombie": "tracer",
    "io_uring|send_fds": "io_uring",
    "Can't dump ghost file": "open file",
    "[Cc]an't (?:seize|attach)": "tracer",
    "External socket is used": "socket",
    "ctty inheritance": "terminal",
}
"""How the pattern of a refusal that is the program's own begins: the check of `ijfs doctor NAME` that finds it."""

UNSEEN = {
    "In-flight connection": "passes by itself",
    "(?:doesn't have a proper root mount": "CRIU alone knows how mounts hang together",
    "[Ss]ession leader": "`ijfs exec` starts no process that a save takes",
    "Can't dump.*?(inotify": "a watched file that is gone has no name to look at",
}
"""Those that nothing finds before the save, and why."""


def test_each_refusal_that_a_save_knows_is_found_by_doctor_or_known_not_to_be() -> None:
    of_program = [known.pattern for known in KNOWN if known.of_program or known.passes]
    kinds = {**CHECKED, **UNSEEN}
    unknown = [pattern for pattern in of_program if not pattern.startswith(tuple(kinds))]
    assert unknown == []
    assert [kind for kind in kinds if not any(pattern.startswith(kind) for pattern in of_program)] == []
    sources = "".join(path.read_text() for path in Path(ijfs.live.checks.__path__[0]).glob("*.py"))
    names = set(re.findall(r'check="([^"]+)"', sources)) | {"io_uring"}
    assert set(CHECKED.values()) <= names
