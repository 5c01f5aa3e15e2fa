"""One connection to a keeper: a request and its answers, line by line. Used by instances.py, fork.py and spawn.py."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from ijfs.live.errors import InstanceExitedError, KeeperError, NoInstanceError, ProtocolError, rebuild
from ijfs.live.model import protocol
from ijfs.live.model.paths import InstancePaths, short_path
from ijfs.live.model.protocol import Arguments, Busy, Event, FilesChoice, Reply
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import NO_LIMITS, Idle, InstanceInfo, Limits, SaveResult
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import keeper_ended
from ijfs_engine.errors import NOT_BUILT, IjfsError

OnEvent = Callable[[Event], None]
"""A caller's function that a verb's events go to."""


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
            with short_path(paths.socket) as path:
                sock.connect(path)
        except OSError as error:
            sock.close()
            raise KeeperError(f"the keeper of `{paths.root.name}` does not answer: {error.strerror}") from error
        return cls(sock, paths, on_event)

    def close(self) -> None:
        """Close the connection; a verb the keeper has begun goes on."""
        self._socket.close()

    def detach(self) -> socket.socket:
        """The connection itself, for who speaks the protocol over it; this object has none any more."""
        return socket.socket(fileno=self._socket.detach())

    def __enter__(self) -> KeeperClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self) -> InstanceInfo:
        """The instance as its keeper sees it."""
        return self.request(protocol.StatusArguments())

    def save(
        self,
        message: str = "",
        *,
        branch: str | None = None,
        stop: bool = False,
        notebook: bytes | None = None,
        force: bool = False,
        gpu_timeout_s: float | None = None,
        wait: bool = True,
        verify: bool = False,
        auto: bool = False,
    ) -> SaveResult:
        """Save the program: memory, files, and the notebook document where one is given. Returns when it is durable.

        Without `wait` it returns at the thaw, without a snapshot; `wait_save(result.number)` has the rest, `status()`
        shows how many saves are on their way and whether one failed.

        The snapshot goes onto `branch` (default: the branch of the instance's name). `stop` ends the program in the
        frozen state, so that nothing it does later is lost. A second save may be taken while the first is being stored,
        a third waits; they are stored in order, each the parent of the next. For a GPU program, `force` saves in spite
        of what preflight refuses, and `gpu_timeout_s` is how long running kernels get. `verify` restores the snapshot
        into a sandbox that is thrown away before the program in it runs; the result says whether CRIU accepts it.
        `auto`: nobody asked for it, and it is thinned out with others of its kind.
        """
        arguments = protocol.SaveArguments(
            message=message,
            branch=branch,
            stop=stop,
            notebook=notebook,
            force=force,
            gpu_timeout_s=gpu_timeout_s,
            wait=wait,
            verify=verify,
            auto=auto,
        )
        return self.request(arguments)

    def give(self, ticket: str, document: bytes) -> None:
        """The notebook as its editor has it, which a `document` event asked for."""
        self.request(protocol.GiveArguments(ticket=ticket, document=document))

    def set_notebook(self, path: str) -> None:
        """The notebook that a kernel belongs to, a path of this machine; "" for none."""
        self.request(protocol.NotebookArguments(path=path))

    def wait_save(self, number: int) -> SaveResult:
        """What a save came to that was not waited for, when it is durable; raises what it failed with."""
        return self.request(protocol.WaitSaveArguments(number=number))

    def restore(
        self,
        snapshot: str,
        *,
        eager: bool = False,
        on_demand: bool = False,
        gpus: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        files: FilesChoice | Literal[""] = "",
        busy: Busy = "interrupt",
        limits: Limits = NO_LIMITS,
        secrets: Mapping[str, str] | None = None,
        idle: Idle | None = None,
    ) -> InstanceInfo:
        """Go back in place: the restored program takes this instance's name, ports and clients. `env`: variables for
        it, `files`: what becomes of folders that it shares, `busy`: and of a cell that it runs, `limits`: what it may
        take, `secrets`: what it can ask for, `idle`: what becomes of it where nobody uses it (api.restore says all).
        KernelBusyError."""
        wanted = protocol.RestoreArguments(
            snapshot=snapshot,
            eager=eager,
            on_demand=on_demand,
            gpus=tuple(gpus),
            env=dict(env or {}),
            files=files,
            busy=busy,
            limits=limits,
            secrets=dict(secrets or {}),
            idle=idle,
        )
        return self.request(wanted)

    def wait_memory(self) -> InstanceInfo:
        """Block until all memory of a lazily restored program is in."""
        return self.request(protocol.WaitMemoryArguments())

    def signal(self, number: int) -> None:
        """Send a signal to the program's process group; SIGINT interrupts a kernel."""
        self.request(protocol.SignalArguments(number=number))

    def park(self, *, disk: bool = False) -> InstanceInfo:
        """Let the program stand still in host memory, where it takes no processor and no GPU; clients wait. Does
        nothing where it is parked already. `disk`: save it and end it, to be woken by api.wake."""
        return self.request(protocol.ParkArguments(disk=disk))

    def wake(self) -> InstanceInfo:
        """Let a parked program go on. PreflightError where the GPU has no room for it: it stays parked."""
        return self.request(protocol.WakeArguments())

    def stop(self, *, timeout_s: float = 5.0, force: bool = False) -> InstanceInfo:
        """End the program: SIGTERM, after `timeout_s` seconds SIGKILL. Returns when its keeper has ended too.

        Saves that are still being stored are waited for. When one fails that nobody else waits for, the program is
        not stopped, unless `force` says so: what was to be saved would be gone with it.
        """
        process = read_record(self._paths).keeper
        info = self.request(protocol.StopArguments(timeout_s=timeout_s, force=force))
        keeper_ended(self._paths, process)
        return info

    def request(self, arguments: Arguments[Reply]) -> Reply:
        """The verb that takes these arguments: its events go to `on_event`, its reply is returned. The keeper's error
        is raised as the exception that it was there."""
        number, self._next_id = self._next_id, self._next_id + 1
        try:
            self._socket.sendall(protocol.encode_request(number, arguments))
        except (BrokenPipeError, ConnectionResetError):
            raise self._broken() from None
        for answer in self._answers(number):
            if answer.error is not None:
                raise rebuild(answer.error)
            if answer.is_reply:
                return protocol.decode_reply(arguments, answer.ok)
            event = answer.known_event()
            if event is not None and self._on_event is not None:
                self._on_event(event)
        raise self._broken()

    def _answers(self, number: int) -> Iterator[protocol.KeeperLine]:
        while True:
            while self._ready:
                answer = protocol.decode_keeper_line(self._ready.pop(0))
                if answer.id != number:
                    raise ProtocolError(f"the keeper answered request {answer.id}, not {number}")
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
        return KeeperError(
            f"the keeper of `{name}` broke off: {last}", hint=NOT_BUILT if _NO_MODULE.match(last) else None
        )


_NO_MODULE = re.compile(r"(ModuleNotFound|Import)Error: .*'ijfs(_engine)?\b")
"""What Python says last where a module of ijfs itself is not there."""


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it left no log"
