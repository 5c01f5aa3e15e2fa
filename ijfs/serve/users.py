"""Users without root: a Unix socket over which their `ijfs` has verbs done by root, each in a repository of its own.

Who calls is what the kernel says (SO_PEERCRED), and who may call are those who may write to the socket: root and one
group. A call comes with the caller's standard streams (SCM_RIGHTS) and is done by a process of its own
(ijfs.cli.for_user), which takes of it only what names nothing of this machine. Programs run as the user, never as root.
"""

from __future__ import annotations

import contextlib
import grp
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ijfs import settings
from ijfs.jupyter.repository import ensure_repository
from ijfs.live.errors import CommandError
from ijfs.live.model.records import NO_LIMITS, Limits
from ijfs.live.process import unix_socket
from ijfs.serve.audit import Audit
from ijfs_engine.errors import IjfsError

LENGTH = struct.Struct("!I")
PEER = struct.Struct("3i")
MOST_BYTES = 4 << 20
"""Of a request: the caller's environment is in it, which the kernel bounds by about as much."""
MOST_CALLS = 64
"""Under way at a time; more wait."""
SHOWN = ("TERM", "NO_COLOR")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)

log = logging.getLogger("ijfs.serve")


class RefusedError(IjfsError):
    """A call that is not done."""


@dataclass(frozen=True)
class Users:
    """Where users call (`path`), which group may, and the directory that has their repositories, by number. Of each
    user: `programs` may be live at a time, `calls` be under way; `limits`: what a program that one starts may take."""

    path: Path
    group: str
    repositories: Path
    programs: int = 50
    calls: int = 16
    limits: Limits = NO_LIMITS
    _under_way: Counter[int] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Around the server's life. CommandError."""
        with self._listening() as listening:
            threading.Thread(target=self._accept, args=[listening], name="ijfs-users", daemon=True).start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                self.path.unlink(missing_ok=True)

    def _listening(self) -> socket.socket:
        try:
            gid = grp.getgrnam(self.group).gr_gid
        except KeyError:
            raise CommandError(f"there is no group `{self.group}`", hint=f"`groupadd {self.group}` makes it") from None
        self.repositories.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        listening = unix_socket.bound(self.path)
        os.chown(self.path, 0, gid)
        os.chmod(self.path, 0o660)
        listening.listen(MOST_CALLS)
        return listening

    def _accept(self, listening: socket.socket) -> None:
        room = threading.Semaphore(MOST_CALLS)
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                connection, _ = listening.accept()
                room.acquire()
                threading.Thread(target=self._call, args=[connection, room], daemon=True).start()

    def _call(self, connection: socket.socket, room: threading.Semaphore) -> None:
        with room_given_back(room), connection:
            try:
                answer: dict[str, Any] = {"code": self._done(connection)}
            except IjfsError as error:
                answer = {"code": error.exit_code, "refused": str(error)}
            except Exception:
                log.exception("a user's call failed")
                answer = {"code": 1, "refused": "something went wrong inside the server; its log says what"}
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode())

    def _done(self, connection: socket.socket) -> int:
        _, uid, _ = PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        streams, request = _received(connection)
        try:
            repo = self.repositories / str(uid)
            with self._call_of(uid):
                ensure_repository(repo)
                self._note(uid, request["argv"])
                asked = {**request, "uid": uid, "repo": str(repo), "programs": self.programs}
                return _run(connection, streams, asked, _as_settings(self.limits))
        finally:
            for stream in streams:
                os.close(stream)

    @contextlib.contextmanager
    def _call_of(self, uid: int) -> Iterator[None]:
        """Around a user's call: nobody takes the room of all others. RefusedError."""
        with self._lock:
            if self._under_way[uid] >= self.calls:
                raise RefusedError(f"{self.calls} calls of yours are under way, and more may not be")
            self._under_way[uid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[uid] -= 1

    def _note(self, uid: int, argv: list[str]) -> None:
        """Words of a command may be secrets: the verb alone is noted."""
        verb = next((word for word in argv if not word.startswith("-")), "")
        Audit(self.repositories / "audit.log").write(uid=uid, call=verb)


@contextlib.contextmanager
def room_given_back(room: threading.Semaphore) -> Iterator[None]:
    """Around a call that has taken room."""
    try:
        yield
    finally:
        room.release()


def _received(connection: socket.socket) -> tuple[list[int], dict[str, Any]]:
    """The caller's three standard streams, and what is asked for; RefusedError for what is no request."""
    head, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    try:
        (length,) = LENGTH.unpack(head)
        if len(streams) != 3 or length > MOST_BYTES:
            raise RefusedError("a call is at most 4 MiB, and comes with three descriptors")
        request = json.loads(_exactly(connection, length))
        argv, cwd, env = request["argv"], request["cwd"], request["env"]
        texts = [*argv, cwd, *env, *env.values()]
        if not argv or not all(isinstance(text, str) for text in texts):
            raise RefusedError("a call is words, a directory and variables")
        return streams, {"argv": argv, "cwd": cwd, "env": {n: v for n, v in env.items() if _is_utf8(n + v)}}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        _close(streams)
        raise RefusedError("this is no call of `ijfs`") from None
    except RefusedError:
        _close(streams)
        raise


def _close(streams: list[int]) -> None:
    for stream in streams:
        os.close(stream)


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (piece := connection.recv(min(1 << 16, length - len(data)))):
        data += piece
    return bytes(data)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _as_settings(limits: Limits) -> str:
    """Limits as IJFS_DEFAULTS has them, which a program that is started takes where its user may not say."""
    said = {"memory": limits.memory, "io": limits.io}
    words = [f"{name}={_typed(value)}" for name, value in said.items() if value is not None]
    words += [f"cpus={limits.cpus or 'none'}"] if limits.cpus is not None else []
    words += [f"pids={limits.pids or 'none'}"] if limits.pids is not None else []
    return " ".join(words)


def _typed(count: int) -> str:
    return f"{max(count >> 10, 1)}K" if count else "none"


def _run(connection: socket.socket, streams: list[int], request: dict[str, Any], defaults: str) -> int:
    """Have it done; its exit code. Signals that the caller gets are handed on; a caller that is gone ends it."""
    with os.fdopen(os.memfd_create("ijfs-call"), "w+") as file:
        json.dump(request, file)
        file.seek(0)
        number = file.fileno()
        stdin, stdout, stderr = streams
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ijfs.cli.for_user", str(number)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd="/",
            env=_environment(request["env"], defaults),
            start_new_session=True,
            pass_fds=[number],
        )
    _hand_signals_on(connection, process)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _environment(callers: dict[str, str], defaults: str) -> dict[str, str]:
    """The server's own with these settings behind it, and of the caller's what says how its terminal is written to."""
    own = {name: value for name, value in os.environ.items() if name != "IJFS_REPO"}
    own[settings.VARIABLE] = f"{own.get(settings.VARIABLE, '')} {defaults}".strip()
    return own | {name: callers[name] for name in SHOWN if name in callers}


def _hand_signals_on(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([connection.fileno(), ended], [], [])
            if ended in ready:
                return
            told = connection.recv(16)
            for number in told or bytes([signal.SIGHUP]):
                if number in SIGNALS:
                    os.killpg(process.pid, number)
            if not told:
                return
    finally:
        os.close(ended)
