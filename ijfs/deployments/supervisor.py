"""The supervisor of a repository's deployments: `python -m ijfs.deployments REPO`. It owns their ports.

It may be killed at any time: the instances are their keepers', what was deployed is in the repository, and the next one
takes over what runs or stands still. Started by client.py, or by systemd (containers/systemd).

SIGTERM (a machine that is about to be taken away) saves all that is checkpointed, within IJFS_NOTICE_S seconds, and
ends; SIGINT ends and leaves all as it is. Without deployments it ends by itself, unless it is to stay.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import trio

from ijfs.deployments import control, records, room
from ijfs.deployments.backend import require_free
from ijfs.deployments.control import Answer, Deploy, List, Park, Request, Wake
from ijfs.deployments.deployment import Deployment
from ijfs.deployments.job import Job
from ijfs.deployments.records import DeploymentInfo, DeploymentRecord, DeploymentSpec, NoDeploymentError
from ijfs.live.errors import InstanceExistsError, SandboxError, error_fields
from ijfs.live.process import unix_socket
from ijfs_engine.errors import IjfsError, LockedError

NOTICE_VARIABLE = "IJFS_NOTICE_S"
NOTICE_S = 25.0
"""How long saving everything may take after SIGTERM: clouds give 30 s to 2 minutes."""

BACKLOG = 1024
PORT_TAKEN_S = 0.5
"""Between two tries to get a port that another program has."""

MAX_LINE = 16 << 20

_log = logging.getLogger("ijfs.supervisor")


class Supervisor:
    """All deployments of one repository, at work. `stays`: also without any."""

    def __init__(self, repo: Path, *, stays: bool = False) -> None:
        self._repo = repo
        self._stays = stays
        self._deployments: dict[str, Deployment] = {}
        self._room = room.Room(lambda: self._deployments.values(), room.sizes())
        self._nursery: trio.Nursery | None = None
        self._verbs = trio.Lock()
        self._answering = 0

    async def run(self, listener: socket.socket) -> None:
        """Until a signal, or until there is nothing left to keep."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._obey_signals)
            # All are looked at before any of them begins to work: what runs has its room.
            for deployment in [await self._known(record) for record in records.all_of(self._repo)]:
                self._begin(deployment)
            server = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            nursery.start_soon(trio.serve_listeners, self._serve, [server])

    def _spawn(self, task: object, *args: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)  # type: ignore[arg-type]

    async def _known(self, record: DeploymentRecord) -> Deployment:
        made = Job if record.spec.start_mode == "job" else Deployment
        deployment = made(self._repo, record, self._room, self._spawn)
        await deployment.take_over()
        self._deployments[record.spec.name] = deployment
        return deployment

    def _begin(self, deployment: Deployment, listener: trio.SocketListener | None = None) -> None:
        self._spawn(deployment.end_leaving)
        self._spawn(self._kept, deployment, listener)

    async def _kept(self, deployment: Deployment, listener: trio.SocketListener | None) -> None:
        """Serve a deployment; a port that another program has is waited for. A job is forgotten when it is over."""
        while listener is None and not isinstance(deployment, Job):
            try:
                listener = listen(deployment.spec)
            except IjfsError as error:
                deployment.say(str(error))
                await trio.sleep(PORT_TAKEN_S)
        try:
            await deployment.run(listener)
        except Exception:
            _log.exception("%s broke in an unknown way", deployment.spec.name)
            return
        if isinstance(deployment, Job) and deployment.is_over:
            self._deployments.pop(deployment.spec.name, None)
            self._end_without_deployments()

    def _end_without_deployments(self) -> None:
        """End where there is nothing to keep, and nobody who waits for an answer."""
        if not self._deployments and not self._stays and not self._answering:
            assert self._nursery is not None
            self._nursery.cancel_scope.cancel()

    # -- signals --------------------------------------------------------------------------------------------------

    async def _obey_signals(self) -> None:
        assert self._nursery is not None
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                _log.info("%s", signal.Signals(number).name)
                if number == signal.SIGTERM:
                    await self._save_all(float(os.environ.get(NOTICE_VARIABLE, NOTICE_S)))
                self._nursery.cancel_scope.cancel()
                return

    async def _save_all(self, limit_s: float) -> None:
        """Everything that is checkpointed goes to disk, at once; requests under way get a part of the time."""
        began = time.monotonic()
        with trio.move_on_after(limit_s) as scope:
            async with trio.open_nursery() as nursery:
                for deployment in self._deployments.values():
                    if deployment.spec.start_mode in ("checkpoint", "job"):
                        nursery.start_soon(self._saved, deployment, limit_s / 5)
        late = " (not all: the time was over)" if scope.cancelled_caught else ""
        _log.info("saved after %.1f s%s", time.monotonic() - began, late)

    async def _saved(self, deployment: Deployment, drain_s: float) -> None:
        with contextlib.suppress(IjfsError):
            await deployment.give_way("disk", drain_s=drain_s, cut=True)

    # -- verbs ----------------------------------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection to the control socket: one request."""
        self._answering += 1
        try:
            line = await _line(stream)
            answer = await self._answer(line)
        except IjfsError as error:
            answer = Answer(error=error_fields(error))
        except Exception as error:
            _log.exception("a request broke in an unknown way")
            answer = Answer(error=error_fields(IjfsError(f"the supervisor failed: {error!r}")))
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            await stream.send_all(msgspec.json.encode(answer) + b"\n")
        self._answering -= 1
        self._end_without_deployments()

    async def _answer(self, line: bytes) -> Answer:
        try:
            request: Request = msgspec.json.decode(line, type=Request)
        except msgspec.DecodeError as error:
            raise IjfsError(f"the supervisor does not know this request: {error}") from error
        if isinstance(request, List):
            return Answer(ok=tuple(deployment.info() for _, deployment in sorted(self._deployments.items())))
        if isinstance(request, Deploy):
            return Answer(ok=(await self._deploy(request),))
        deployment = self._of(request.name)
        if isinstance(request, Park):
            if not await deployment.park(request.depth):
                raise LockedError(f"`{request.name}` is busy: requests are under way", hint="try again later")
        elif isinstance(request, Wake):
            await deployment.wake()
        else:
            await deployment.undeploy()
            self._deployments.pop(request.name, None)
        return Answer(ok=(deployment.info(),))

    def _of(self, name: str) -> Deployment:
        if name not in self._deployments:
            raise NoDeploymentError(f"there is no deployment `{name}`")
        return self._deployments[name]

    async def _deploy(self, request: Deploy) -> DeploymentInfo:
        async with self._verbs:
            there = self._deployments.get(request.spec.name)
            if there is not None and not request.replace:
                raise InstanceExistsError(
                    f"there is a deployment `{request.spec.name}` already", hint="`--replace` puts another in its place"
                )
            if there is not None:
                if "job" in (there.spec.start_mode, request.spec.start_mode):
                    raise InstanceExistsError(
                        f"`{request.spec.name}` is a job, or is to be one, and has no other version",
                        hint=f"`ijfs undeploy {request.spec.name}` ends it",
                    )
                await there.replace(request.spec)
                return there.info()
            deployment = await self._new(request.spec)
        if request.start:
            try:
                await deployment.wake()
            except IjfsError:
                await deployment.undeploy()
                self._deployments.pop(request.spec.name, None)
                raise
        return deployment.info()

    async def _new(self, spec: DeploymentSpec) -> Deployment:
        """A deployment of a new name; its port is found out, and written down, before anything else is done."""
        is_job = spec.start_mode == "job"
        for instance in DeploymentRecord(spec=spec).instances():
            await trio.to_thread.run_sync(partial(require_free, branch_too=not is_job), self._repo, instance)
        if is_job:
            record = DeploymentRecord(spec=spec, created_ns=time.time_ns())
            records.write(self._repo, record)
            return await self._new_one(record)
        listener = listen(spec)
        port = int(listener.socket.getsockname()[1])
        record = DeploymentRecord(spec=msgspec.structs.replace(spec, port=port), created_ns=time.time_ns())
        try:
            records.write(self._repo, record)
        except BaseException:
            listener.socket.close()
            raise
        return await self._new_one(record, listener)

    async def _new_one(self, record: DeploymentRecord, listener: trio.SocketListener | None = None) -> Deployment:
        deployment = await self._known(record)
        self._begin(deployment, listener)
        return deployment


def listen(spec: DeploymentSpec) -> trio.SocketListener:
    """Where a deployment is reached. SandboxError where another program has the port."""
    sock = socket.socket(socket.AF_INET6 if ":" in spec.address else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((spec.address, spec.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else (error.strerror or "").lower()
        raise SandboxError(
            f"port {spec.port} on {spec.address}, where `{spec.name}` is to be reached, {why}",
            hint="end what has it, or choose another with `--port`",
        ) from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def _line(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        more = await stream.receive_some(1 << 16)
        if not more or len(data) > MAX_LINE:
            raise IjfsError("a request to the supervisor broke off")
        data += more
    return bytes(data)


def lock(repo: Path) -> int | None:
    """Be this repository's only supervisor: the descriptor that says so, None where there is one."""
    path = control.lock_path(repo)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def control_listener(repo: Path) -> socket.socket:
    """The control socket, for its owner alone."""
    path = control.socket_path(repo)
    path.unlink(missing_ok=True)
    sock = unix_socket.bound(path)
    sock.listen(BACKLOG)
    return sock


def main(arguments: list[str]) -> int:
    """`python -m ijfs.deployments REPO [--stay] [--daemon]`: with `--stay` also without deployments; with `--daemon` it
    returns as soon as a process of its own listens."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    repo = Path(arguments[0]).resolve()
    held = lock(repo)
    if held is None:
        print(f"{repo} has a supervisor already", file=sys.stderr)
        return LockedError.exit_code
    try:
        listener = control_listener(repo)
        if "--daemon" in arguments and os.fork():
            os._exit(0)
        trio.run(Supervisor(repo, stays="--stay" in arguments).run, listener)
        control.socket_path(repo).unlink(missing_ok=True)
    finally:
        os.close(held)
    return 0
