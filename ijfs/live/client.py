"""What the command line and Jupyter call: blocking verbs on live instances. One keeper process serves each instance.

Everything raises IjfsError. `on_event` is called with each event of ijfs.live.protocol, in the calling thread.
Imports stay light: this module is on the way of every restore, and of every `ijfs ps`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ijfs.live import procfs, protocol
from ijfs.live.errors import (
    InstanceExistsError,
    InstanceExitedError,
    KeeperError,
    NoInstanceError,
    ProtocolError,
    rebuild,
)
from ijfs.live.paths import BadNameError, InstancePaths, check_name, live_directory
from ijfs.live.record_file import info_of, read_record
from ijfs.live.records import InstanceInfo, InstanceRecord, InstanceSpec, SaveResult
from ijfs_engine.errors import IjfsError, LockedError

# How long an instance may be between two keepers.
ADOPT_LIMIT_S = 10.0

OnEvent = Callable[[dict[str, Any]], None]
RepoPath = str | os.PathLike[str]

# A keeper unmounts and writes its record within some 10 ms of the program's end; a busy machine gets more.
KEEPER_END_S = 5.0


def list_instances(repo: RepoPath) -> list[InstanceInfo]:
    """All instances of a repository by name, ended ones included; a keeper that does not answer is not waited for."""
    directory = live_directory(repo)
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    found = []
    for name in names:
        with contextlib.suppress(NoInstanceError):
            found.append(describe(repo, name))
    return found


def describe(repo: RepoPath, name: str) -> InstanceInfo:
    """One instance: what its keeper says, or, without one, what its record and /proc say."""
    paths = InstancePaths.of(repo, name)
    record = read_record(paths)
    if record.status == "running":
        gone = (KeeperError, InstanceExitedError, OSError)
        with contextlib.suppress(*gone), KeeperClient.open(paths, timeout=2.0) as keeper:
            return keeper.status()
        record = read_record(paths)  # it may have ended just now, and its keeper said how
    alive = procfs.is_alive(record.program)
    if record.status in ("running", "starting") and not alive:
        record = msgspec.structs.replace(record, status="exited", note=record.note or "ended without a keeper")
    return info_of(paths, record, keeper_running=procfs.is_alive(record.keeper))


def start(repo: RepoPath, spec: InstanceSpec, *, again: bool = False, on_event: OnEvent | None = None) -> InstanceInfo:
    """Start a program in a sandbox of its own; returns when it runs (a kernel may still be importing).

    `again`: an ended instance of that name begins anew instead of being swept away. The files it wrote and the relay's
    ports stay, and its next snapshot is the child of its last; clients that are connected see a restart.
    """
    paths = _claim(repo, spec.name, again=again)
    return _spawned(paths, "start", {"spec": spec, "again": again}, on_event)


def restore(
    repo: RepoPath,
    snapshot: str,
    name: str,
    *,
    eager: bool = False,
    replace: bool = False,
    gpus: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> InstanceInfo:
    """Bring a snapshot (any spelling Repository.resolve takes) back as the instance `name`; returns when it runs.

    `replace` goes back in place: a live instance of that name ends when the restored one runs, and its clients go
    on with the same ports and key; when the restore fails it runs on as before. An ended instance of that name leaves
    its ports to the restored one; without one, `replace` is an ordinary restore. `gpus` (index or UUID) chooses the
    GPUs of a program that held some, in the order in which it held them; by default the same ones.
    """
    args = {"snapshot": snapshot, "eager": eager, "gpus": list(gpus)}
    if replace and is_running(repo, name):
        with connect(repo, name, on_event=on_event) as keeper:
            return keeper.restore(snapshot, eager=eager, gpus=gpus)
    paths = _claim(repo, name, again=replace)
    return _spawned(paths, "restore", {**args, "again": replace}, on_event)


def fork(
    repo: RepoPath,
    source: str,
    names: Sequence[str] = (),
    *,
    count: int = 1,
    eager: bool = False,
    message: str = "",
    gpus: Sequence[str] = (),
    on_event: OnEvent | None = None,
) -> list[InstanceInfo]:
    """Live siblings of a live instance (saved first) or of a snapshot, started at once.

    `names` may be left out: then they are `<source's name>-1`, … as far as they are free. When one sibling fails, the
    others stay and the error says which (PartialError), or, where none came up, it is the first one's error.
    """
    from ijfs.live.siblings import fork as fork_siblings

    return fork_siblings(repo, source, names, count=count, eager=eager, message=message, gpus=gpus, on_event=on_event)


def is_running(repo: RepoPath, name: str) -> bool:
    """Whether an instance of that name has a program that runs."""
    try:
        record = read_record(InstancePaths.of(repo, name))
    except (NoInstanceError, BadNameError):  # a snapshot's name may be none that an instance can have
        return False
    return procfs.is_alive(record.program)


def connect(repo: RepoPath, name: str, *, on_event: OnEvent | None = None) -> KeeperClient:
    """The keeper of a live instance. Where it was killed, a new one adopts the program and `on_event` gets a notice."""
    paths = InstancePaths.of(repo, name)
    record = read_record(paths)
    if not procfs.is_alive(record.program):
        raise InstanceExitedError(f"the program of `{name}` has ended")
    deadline = time.monotonic() + ADOPT_LIMIT_S
    while True:
        with contextlib.suppress(KeeperError):
            return KeeperClient.open(paths, on_event=on_event)
        try:
            _spawned(paths, "adopt", {}, on_event)
        except LockedError:  # another client's new keeper was quicker, or the old one is not quite gone
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def remove(repo: RepoPath, name: str) -> None:
    """Forget an instance whose program has ended: its directory goes. LockedError while it runs."""
    paths = InstancePaths.of(repo, name)
    if procfs.is_alive(read_record(paths).program):
        raise LockedError(f"`{name}` is running", hint=f"`ijfs stop {name}` ends it")
    shutil.rmtree(paths.root)


def exec_command(
    repo: RepoPath,
    name: str,
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a command inside an instance's namespaces with this process's stdin, stdout and stderr; its exit status.

    The status is as a shell has it: 128 + the signal's number for a command that a signal ended.
    """
    record = read_record(InstancePaths.of(repo, name))
    if record.program is None or not procfs.is_alive(record.program):
        raise InstanceExitedError(f"the program of `{name}` has ended")
    request = {"program": record.program, "argv": list(argv), "cwd": cwd, "env": dict(env or {})}
    helper = [sys.executable, "-P", "-m", "ijfs.live.enter", msgspec.json.encode(request).decode()]
    done = subprocess.run(helper, check=False)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _claim(repo: RepoPath, name: str, *, again: bool = False) -> InstancePaths:
    """Make the instance's directory; the remains of an ended one of that name go first, unless it is to begin again."""
    paths = InstancePaths.of(repo, check_name(name))
    paths.root.parent.mkdir(mode=0o700, exist_ok=True)
    if paths.record.exists():
        if procfs.is_alive(read_record(paths).program) or not _keeper_ended(paths):
            raise InstanceExistsError(f"there is an instance `{name}` already")
        if again:
            return paths
        shutil.rmtree(paths.root)
    try:
        paths.root.mkdir(mode=0o700)
    except FileExistsError:
        raise InstanceExistsError(f"there is an instance `{name}` already") from None
    return paths


def _keeper_ended(paths: InstancePaths) -> bool:
    """Whether no keeper holds the instance; that of a program which has just ended gets a moment to clean up."""
    deadline = time.monotonic() + KEEPER_END_S
    with paths.lock.open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
            else:
                return True


def _spawned(paths: InstancePaths, verb: str, args: dict[str, Any], on_event: OnEvent | None) -> InstanceInfo:
    """Spawn a keeper that begins with `verb`; its answer. A keeper that could not begin leaves no directory behind."""
    lazy = verb == "restore" and not args.get("eager")
    try:
        with KeeperClient(_spawn_keeper(paths, lazy=lazy), paths, on_event) as keeper:
            return msgspec.convert(keeper.request(verb, args), InstanceInfo)
    except BaseException:
        if verb != "adopt" and not paths.record.exists():
            shutil.rmtree(paths.root, ignore_errors=True)
        raise


def _spawn_keeper(paths: InstancePaths, *, lazy: bool) -> socket.socket:
    """Start a keeper process for the instance's directory; the returned socket is its first client. `lazy`: the first
    request will be a lazy restore."""
    ours, theirs = socket.socketpair()
    with theirs, paths.keeper_log.open("ab") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-P", "-m", "ijfs.live.keeper", str(paths.root), str(theirs.fileno()), *["lazy"] * lazy],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
            cwd="/",
            start_new_session=True,
        )
    launcher.wait()  # it forks at once: the keeper is nobody's child, so no client keeps a zombie of it
    return ours


class KeeperClient:
    """One connection to a keeper; a context manager. Verbs block until the keeper is done."""

    def __init__(self, sock: socket.socket, paths: InstancePaths, on_event: OnEvent | None = None) -> None:
        self._socket = sock
        self._paths = paths
        self._on_event = on_event
        self._lines = protocol.LineBuffer()
        self._ready: list[bytes] = []
        self._next_id = 1

    @classmethod
    def open(
        cls, paths: InstancePaths, *, on_event: OnEvent | None = None, timeout: float | None = None
    ) -> KeeperClient:
        """Connect to the control socket; KeeperError when nobody listens there. `timeout`: seconds per answer."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            with _short_path(paths.socket) as path:
                sock.connect(path)
        except OSError as error:
            sock.close()
            raise KeeperError(f"the keeper of `{paths.root.name}` does not answer: {error.strerror}") from error
        return cls(sock, paths, on_event)

    def close(self) -> None:
        """Close the connection; a verb the keeper has begun goes on."""
        self._socket.close()

    def __enter__(self) -> KeeperClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self) -> InstanceInfo:
        """The instance as its keeper sees it."""
        return msgspec.convert(self.request("status", {}), InstanceInfo)

    def save(
        self,
        message: str = "",
        *,
        branch: str | None = None,
        stop: bool = False,
        notebook: bytes | None = None,
        force: bool = False,
        gpu_timeout_s: float | None = None,
    ) -> SaveResult:
        """Save the program: memory, files, and the notebook document where one is given. Returns when it is durable.

        The snapshot goes onto `branch` (default: the branch of the instance's name). `stop` ends the program in the
        frozen state, so that nothing it does later is lost. A second save waits until the first is done. For a GPU
        program: `force` saves in spite of what preflight refuses, `gpu_timeout_s` is how long running kernels get.
        """
        args: dict[str, Any] = {"message": message, "branch": branch, "stop": stop, "notebook": notebook}
        args |= {"force": force, "gpu_timeout_s": gpu_timeout_s}
        return msgspec.convert(self.request("save", args), SaveResult)

    def restore(self, snapshot: str, *, eager: bool = False, gpus: Sequence[str] = ()) -> InstanceInfo:
        """Go back in place: the restored program takes this instance's name, ports and clients."""
        args = {"snapshot": snapshot, "eager": eager, "gpus": list(gpus)}
        return msgspec.convert(self.request("restore", args), InstanceInfo)

    def wait_memory(self) -> InstanceInfo:
        """Block until all memory of a lazily restored program is in."""
        return msgspec.convert(self.request("wait_memory", {}), InstanceInfo)

    def signal(self, number: int) -> None:
        """Send a signal to the program's process group; SIGINT interrupts a kernel."""
        self.request("signal", {"number": number})

    def stop(self, *, timeout_s: float = 5.0) -> InstanceInfo:
        """End the program: SIGTERM, after `timeout_s` seconds SIGKILL; its keeper cleans up and ends too."""
        return msgspec.convert(self.request("stop", {"timeout_s": timeout_s}), InstanceInfo)

    def request(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """One verb, its events to `on_event`, its result; the keeper's error as the exception it was there."""
        number, self._next_id = self._next_id, self._next_id + 1
        self._socket.sendall(protocol.encode({"id": number, "verb": verb, "args": args}))
        for answer in self._answers(number):
            if "ok" in answer:
                return dict(answer["ok"])
            if "error" in answer:
                raise rebuild(answer["error"])
            if "event" in answer and self._on_event is not None:
                self._on_event(answer["event"])
        raise self._broken()

    def _answers(self, number: int) -> Iterator[dict[str, Any]]:
        while True:
            while self._ready:
                answer = protocol.decode(self._ready.pop(0))
                if answer.get("id") != number:
                    raise ProtocolError(f"the keeper answered request {answer.get('id')}, not {number}")
                yield answer
            data = self._receive()
            if not data:
                return
            self._ready = self._lines.feed(data)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except ConnectionResetError:
            return b""
        except TimeoutError:
            raise KeeperError(f"the keeper of `{self._paths.root.name}` did not answer in time") from None

    def _broken(self) -> IjfsError:
        name = self._paths.root.name
        with contextlib.suppress(NoInstanceError):
            record = read_record(self._paths)
            if procfs.is_alive(record.program):
                hint = f"the next command to `{name}` starts a new keeper; the old one's log: {self._paths.keeper_log}"
                return KeeperError(f"the keeper of `{name}` broke off; the program runs on", hint=hint)
            if record.program is not None:
                return InstanceExitedError(f"the program of `{name}` has ended")
        last = _last_line(self._paths.keeper_log)
        return KeeperError(f"the keeper of `{name}` broke off: {last}")


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it left no log"


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A socket path that fits into sun_path's 108 bytes, however deep the repository lies."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


__all__ = [
    "InstanceInfo",
    "InstanceRecord",
    "InstanceSpec",
    "KeeperClient",
    "SaveResult",
    "connect",
    "describe",
    "exec_command",
    "fork",
    "is_running",
    "list_instances",
    "remove",
    "restore",
    "start",
]
