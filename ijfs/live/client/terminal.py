"""A client of a program's terminal (sandbox/terminal_server.c, which says what goes over the connection)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass

from ijfs.live.client.instances import RepoPath
from ijfs.live.client.record import record_of
from ijfs.live.errors import CommandError, InstanceExitedError
from ijfs.live.model.paths import TERMINAL_PORT, InstancePaths
from ijfs.live.model.records import LOOPBACK, InstanceRecord, Process, Terminal
from ijfs.live.process import procfs
from ijfs.live.sandbox import namespaces as ns

PATIENCE_S = 10.0
"""How long the terminal may take to answer: it does at once, unless the program stands still for a save."""

MOST_TYPED = 1024
"""Bytes in one frame."""

REPLAY = 256 << 10
"""As much of what was written before, at most, is told to a client; terminal_server.c has it, too."""


@dataclass
class Attached:
    """A connection to the terminal of `program`. `before` is what was on its screen, or more."""

    socket: socket.socket
    program: Process
    before: bytes

    def type(self, data: bytes) -> None:
        """Have the program read this as typed. OSError when the terminal is gone."""
        for at in range(0, len(data), MOST_TYPED):
            self._send(b"d", data[at : at + MOST_TYPED])

    def resize(self, rows: int, columns: int) -> None:
        """Tell it how large the window is. OSError when the terminal is gone."""
        self._send(b"s", struct.pack(">HH", rows, columns))

    def read(self) -> bytes:
        """What the program has written; b"" when the terminal is gone."""
        with contextlib.suppress(OSError):
            return self.socket.recv(1 << 16)
        return b""

    def close(self) -> None:
        """Let go; the program goes on."""
        self.socket.close()

    def _send(self, kind: bytes, data: bytes) -> None:
        self.socket.sendall(kind + struct.pack(">H", len(data)) + data)


def attach(repo: RepoPath, name: str) -> Attached:
    """Connect to the terminal of a live program. InstanceExitedError; CommandError for one without a terminal."""
    program, terminal = require(repo, name)
    try:
        return _connected(program, terminal.key)
    except OSError as error:
        if not procfs.is_alive(program):
            raise InstanceExitedError(f"the program of `{name}` has ended") from error
        raise CommandError(
            f"the terminal of `{name}` does not answer: {error.strerror or error}",
            hint=f"`ijfs logs {name}` shows what it wrote, `ijfs ps` whether it is parked",
        ) from error


def require(repo: RepoPath, name: str) -> tuple[Process, Terminal]:
    """A live program and the terminal that it runs at. NoInstanceError; InstanceExitedError; CommandError for one
    without a terminal."""
    record = record_of(InstancePaths.of(repo, name))
    if record.program is None or not procfs.is_alive(record.program):
        raise InstanceExitedError(f"the program of `{name}` has ended", hint=f"`ijfs logs {name}` shows what it wrote")
    if record.spec.terminal is None:
        raise _without_terminal(record)
    return record.program, record.spec.terminal


def _connected(program: Process, key: str) -> Attached:
    network = ns.open_namespace(program.pid, "net")
    try:
        with ns.in_network(network):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    finally:
        os.close(network)
    try:
        sock.settimeout(PATIENCE_S)
        sock.connect((LOOPBACK, TERMINAL_PORT))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(key.encode())
        (length,) = struct.unpack(">I", _exactly(sock, 4))
        before = _exactly(sock, length)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return Attached(sock, program, before)


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise ConnectionError("it broke off")
        data += piece
    return bytes(data)


def _without_terminal(record: InstanceRecord) -> CommandError:
    name = record.spec.name
    if record.spec.kind == "kernel":
        hint = f"`ijfs exec {name} -c CODE` runs a cell, `ijfs exec {name} -- bash` opens a shell inside"
    else:
        hint = f"`ijfs logs -f {name}` shows what it prints, `ijfs exec {name} -- bash` opens a shell inside"
    return CommandError(f"`{name}` was started without a terminal (`ijfs run -it`)", hint=hint)
