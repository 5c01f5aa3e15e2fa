"""The SDK for asyncio and trio: the same classes and names, whose calls are awaited. `from ijfs import aio`.

Each call is the blocking one of the same name, in a thread (anyio). A task that is cancelled leaves it at once: a cell
is interrupted, a command killed, what a keeper was asked to do goes on; no instance is lost. `timeout` means what it
means there.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from ijfs.live.client.api import NO_SECRETS
from ijfs.live.model.records import NO_LIMITS
from ijfs.live.uploads.followed import LOCAL
from ijfs.sdk import box as blocking_box
from ijfs.sdk import calls, forks, search
from ijfs.sdk import events as blocking_events
from ijfs.sdk import files as blocking_files
from ijfs.sdk import repository as blocking_repository
from ijfs.sdk import snapshots as blocking_snapshots
from ijfs.sdk.box import Env
from ijfs.sdk.files import AnyPath
from ijfs.sdk.search import Action, Actions, Node, Score

if TYPE_CHECKING:
    from ijfs.jupyter.outputs import CellResult, OnOutput, OnStream
    from ijfs.live.client.api import FilesChoice, OnEvent
    from ijfs.live.client.watch import RepositoryEvent
    from ijfs.live.model.records import Idle, InstanceInfo, Limits, Network, SaveResult
    from ijfs.live.sandbox.file_access import FileInfo
    from ijfs.sdk import commands as blocking_commands
    from ijfs.sdk.commands import Completed, OnBytes
    from ijfs.sdk.snapshots import Difference
    from ijfs_engine import Exported
    from ijfs_engine import Snapshot as Record

T = TypeVar("T")

CALLS_AT_ONCE = 1000
"""Threads that wait for a keeper, a kernel or a command: each costs little, and a hundred siblings may work at once."""

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("ijfs_calls")


async def in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What a blocking call returns or raises; when this task is cancelled, the call is told and left."""
    cancellation = calls.Cancellation()

    def run() -> T:
        calls.under(cancellation)
        return call(*args, **kwargs)

    try:
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=_threads())
    except anyio.get_cancelled_exc_class():
        cancellation.cancel()
        raise


async def to_its_end(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The same, but left only when the call has ended: what it works on is free then."""
    cancellation = calls.Cancellation()

    def run() -> T:
        calls.under(cancellation)
        return call(*args, **kwargs)

    async def tell_it() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancellation.cancel()

    with _one_error():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell_it)
            result = await anyio.to_thread.run_sync(run, limiter=_threads())
            tasks.cancel_scope.cancel()
    return result


@contextmanager
def _one_error() -> Iterator[None]:
    """The call's own error, out of the group that a task group makes of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _threads() -> anyio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(CALLS_AT_ONCE)
        _limiter.set(limiter)
        return limiter


class Files:
    """As ijfs.Files."""

    def __init__(self, files: blocking_files.Files) -> None:
        self.blocking = files

    async def read(self, path: AnyPath) -> bytes:
        """As Files.read."""
        return await in_thread(self.blocking.read, path)

    async def read_text(self, path: AnyPath) -> str:
        """As Files.read_text."""
        return await in_thread(self.blocking.read_text, path)

    async def write(self, path: AnyPath, data: bytes | str, *, mode: int | None = None) -> None:
        """As Files.write."""
        await in_thread(self.blocking.write, path, data, mode=mode)

    async def list(self, path: AnyPath = ".") -> list[FileInfo]:
        """As Files.list."""
        return await in_thread(self.blocking.list, path)

    async def info(self, path: AnyPath) -> FileInfo:
        """As Files.info."""
        return await in_thread(self.blocking.info, path)

    async def exists(self, path: AnyPath) -> bool:
        """As Files.exists."""
        return await in_thread(self.blocking.exists, path)

    async def make_directory(self, path: AnyPath) -> None:
        """As Files.make_directory."""
        await in_thread(self.blocking.make_directory, path)

    async def remove(self, path: AnyPath) -> None:
        """As Files.remove."""
        await in_thread(self.blocking.remove, path)

    async def rename(self, old: AnyPath, new: AnyPath) -> None:
        """As Files.rename."""
        await in_thread(self.blocking.rename, old, new)

    async def upload(self, local: AnyPath, path: AnyPath) -> None:
        """As Files.upload."""
        await in_thread(self.blocking.upload, local, path)

    async def download(self, path: AnyPath, local: AnyPath) -> None:
        """As Files.download."""
        await in_thread(self.blocking.download, path, local)


class _Pieces(AsyncIterator[tuple[str, bytes]]):
    """A command's output, awaited. No async generator: one that is left in the middle has to be closed."""

    def __init__(self, pieces: Iterator[tuple[str, bytes]]) -> None:
        self._pieces = pieces

    async def __anext__(self) -> tuple[str, bytes]:
        piece: tuple[str, bytes] | None = await in_thread(lambda: next(self._pieces, None))
        if piece is None:
            raise StopAsyncIteration
        return piece


class Command:
    """As ijfs.Command."""

    def __init__(self, command: blocking_commands.Command) -> None:
        self.blocking = command

    async def __aenter__(self) -> Command:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await in_thread(self.blocking.__exit__)

    @property
    def running(self) -> bool:
        """As Command.running."""
        return self.blocking.running

    async def write(self, data: bytes | str) -> None:
        """As Command.write."""
        await in_thread(self.blocking.write, data)

    async def close_input(self) -> None:
        """As Command.close_input."""
        await in_thread(self.blocking.close_input)

    def signal(self, number: int) -> None:
        """As Command.signal."""
        self.blocking.signal(number)

    def kill(self) -> None:
        """As Command.kill."""
        self.blocking.kill()

    def pieces(self, timeout: float | None = None) -> AsyncIterator[tuple[str, bytes]]:
        """As Command.pieces; may be left at any piece."""
        return _Pieces(self.blocking.pieces(timeout))

    async def wait(self, timeout: float | None = None, *, on_output: OnBytes | None = None) -> Completed:
        """As Command.wait."""
        return await in_thread(self.blocking.wait, timeout, on_output=on_output)


class Box:
    """As ijfs.Box; its properties that ask something are methods here."""

    def __init__(self, box: blocking_box.Box) -> None:
        self.blocking = box

    def __repr__(self) -> str:
        return f"aio.{self.blocking!r}"

    async def __aenter__(self) -> Box:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.discard()

    @property
    def name(self) -> str:
        """Its instance's name."""
        return self.blocking.name

    @property
    def repo(self) -> Path:
        """The directory of its repository."""
        return self.blocking.repo

    @property
    def kept(self) -> bool:
        """As Box.kept."""
        return self.blocking.kept

    @property
    def files(self) -> Files:
        """As Box.files."""
        return Files(self.blocking.files)

    async def info(self) -> InstanceInfo:
        """As Box.info."""
        return await in_thread(lambda: self.blocking.info)

    async def running(self) -> bool:
        """As Box.running."""
        return await in_thread(lambda: self.blocking.running)

    async def snapshot(self) -> Snapshot | None:
        """As Box.snapshot."""
        found = await in_thread(lambda: self.blocking.snapshot)
        return Snapshot(found) if found is not None else None

    async def port(self, inside: int) -> int:
        """As Box.port."""
        return await in_thread(self.blocking.port, inside)

    async def logs(self) -> str:
        """As Box.logs."""
        return await in_thread(self.blocking.logs)

    async def connection_file(self) -> str:
        """As Box.connection_file."""
        return await in_thread(self.blocking.connection_file)

    async def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        interrupt: bool = True,
        on_output: OnOutput | None = None,
        on_stream: OnStream = lambda name, text: None,
        store_history: bool = False,
    ) -> CellResult:
        """As Box.run; `on_output` and `on_stream` are called in another thread."""
        return await in_thread(
            self.blocking.run,
            code,
            timeout=timeout,
            interrupt=interrupt,
            on_output=on_output,
            on_stream=on_stream,
            store_history=store_history,
        )

    async def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Env | None = None,
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = False,
        on_output: OnBytes | None = None,
    ) -> Completed:
        """As Box.exec; `on_output` is called in another thread."""
        return await in_thread(
            self.blocking.exec,
            argv,
            cwd=cwd,
            env=env,
            input=input,
            timeout=timeout,
            check=check,
            on_output=on_output,
        )

    async def popen(
        self, argv: Sequence[str], *, cwd: str | None = None, env: Env | None = None, has_input: bool = True
    ) -> Command:
        """As Box.popen."""
        return Command(await in_thread(self.blocking.popen, argv, cwd=cwd, env=env, has_input=has_input))

    async def signal(self, number: int) -> None:
        """As Box.signal."""
        await in_thread(self.blocking.signal, number)

    async def interrupt(self) -> None:
        """As Box.interrupt."""
        await in_thread(self.blocking.interrupt)

    async def wait(self, timeout: float | None = None) -> int | None:
        """As Box.wait."""
        return await in_thread(self.blocking.wait, timeout)

    async def save(
        self,
        message: str = "",
        *,
        branch: str | None = None,
        stop: bool = False,
        verify: bool = False,
        push: bool = False,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Snapshot:
        """As Box.save."""
        return Snapshot(
            await in_thread(
                self.blocking.save,
                message,
                branch=branch,
                stop=stop,
                verify=verify,
                push=push,
                timeout=timeout,
                on_event=on_event,
            )
        )

    async def restore(
        self,
        snapshot: Snapshot | str,
        *,
        save_first: bool = False,
        files: FilesChoice | Literal[""] = "",
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> str | None:
        """As Box.restore."""
        return await in_thread(
            self.blocking.restore,
            str(snapshot),
            save_first=save_first,
            files=files,
            idle=idle,
            secrets=secrets,
            timeout=timeout,
            on_event=on_event,
        )

    async def fork(
        self,
        count: int = 1,
        *,
        names: Sequence[str] = (),
        env: Sequence[Env] = (),
        message: str = "",
        on_demand: bool = False,
        same_random: bool = False,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        ephemeral: bool = False,
        seed: int | None = None,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> list[Box]:
        """As Box.fork."""
        found = await in_thread(
            self.blocking.fork,
            count,
            names=names,
            env=env,
            message=message,
            on_demand=on_demand,
            same_random=same_random,
            limits=limits,
            idle=idle,
            secrets=secrets,
            ephemeral=ephemeral,
            seed=seed,
            timeout=timeout,
            on_event=on_event,
        )
        return [Box(box) for box in found]

    async def park(self, *, disk: bool = False, timeout: float | None = None, on_event: OnEvent | None = None) -> None:
        """As Box.park."""
        await in_thread(self.blocking.park, disk=disk, timeout=timeout, on_event=on_event)

    async def wake(
        self, *, secrets: Env = NO_SECRETS, timeout: float | None = None, on_event: OnEvent | None = None
    ) -> None:
        """As Box.wake."""
        await in_thread(self.blocking.wake, secrets=secrets, timeout=timeout, on_event=on_event)

    async def adopt(
        self, paths: Sequence[str] = (), *, keep: Literal["ours", "theirs"] | None = None, winner: bool = False
    ) -> list[str]:
        """As Box.adopt."""
        return await in_thread(self.blocking.adopt, paths, keep=keep, winner=winner)

    def keep(self) -> Box:
        """As Box.keep."""
        self.blocking.keep()
        return self

    async def stop(self, *, grace_s: float = 5.0, force: bool = False, timeout: float | None = None) -> None:
        """As Box.stop."""
        await in_thread(self.blocking.stop, grace_s=grace_s, force=force, timeout=timeout)

    async def remove(self) -> None:
        """As Box.remove."""
        await in_thread(self.blocking.remove)

    async def discard(self) -> None:
        """As Box.discard."""
        await in_thread(self.blocking.discard)


class Snapshot:
    """As ijfs.Snapshot; its properties that ask something are methods here."""

    def __init__(self, snapshot: blocking_snapshots.Snapshot) -> None:
        self.blocking = snapshot

    def __repr__(self) -> str:
        return f"aio.{self.blocking!r}"

    def __str__(self) -> str:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self.blocking == other.blocking

    def __hash__(self) -> int:
        return hash(self.blocking)

    @property
    def id(self) -> str:
        """64 hex digits."""
        return self.blocking.id

    @property
    def saved(self) -> SaveResult | None:
        """What the save did that made it."""
        return self.blocking.saved

    async def record(self) -> Record:
        """As Snapshot.record."""
        return await in_thread(lambda: self.blocking.record)

    async def message(self) -> str:
        """As Snapshot.message."""
        return await in_thread(lambda: self.blocking.message)

    async def parents(self) -> list[Snapshot]:
        """As Snapshot.parents."""
        return [Snapshot(parent) for parent in await in_thread(lambda: self.blocking.parents)]

    async def program(self) -> str:
        """As Snapshot.program."""
        return await in_thread(lambda: self.blocking.program)

    async def read(self, path: str) -> bytes:
        """As Snapshot.read."""
        return await in_thread(self.blocking.read, path)

    async def diff(self, old: Snapshot | str | None = None, *, memory: bool = True) -> Difference:
        """As Snapshot.diff."""
        return await in_thread(self.blocking.diff, str(old) if old is not None else None, memory=memory)

    async def restore(
        self,
        name: str | None = None,
        *,
        env: Env | None = None,
        eager: bool = False,
        on_demand: bool = False,
        same_random: bool = False,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Box:
        """As Snapshot.restore."""
        return Box(
            await in_thread(
                self.blocking.restore,
                name,
                env=env,
                eager=eager,
                on_demand=on_demand,
                same_random=same_random,
                limits=limits,
                idle=idle,
                secrets=secrets,
                timeout=timeout,
                on_event=on_event,
            )
        )

    async def fork(
        self,
        count: int = 1,
        *,
        names: Sequence[str] = (),
        env: Sequence[Env] = (),
        on_demand: bool = False,
        same_random: bool = False,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        ephemeral: bool = False,
        seed: int | None = None,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
    ) -> list[Box]:
        """As Snapshot.fork."""
        found = await in_thread(
            self.blocking.fork,
            count,
            names=names,
            env=env,
            on_demand=on_demand,
            same_random=same_random,
            limits=limits,
            idle=idle,
            secrets=secrets,
            ephemeral=ephemeral,
            seed=seed,
            timeout=timeout,
            on_event=on_event,
        )
        return [Box(box) for box in found]

    async def tag(self, name: str) -> None:
        """As Snapshot.tag."""
        await in_thread(self.blocking.tag, name)

    async def forget_branch(self, name: str) -> None:
        """As Snapshot.forget_branch."""
        await in_thread(self.blocking.forget_branch, name)

    async def export(self, directory: Path | str, *, path: str = "") -> Exported:
        """As Snapshot.export."""
        return await in_thread(self.blocking.export, directory, path=path)

    async def remove(self) -> None:
        """As Snapshot.remove."""
        await in_thread(self.blocking.remove)


class Repository:
    """As ijfs.Repository."""

    def __init__(self, repository: blocking_repository.Repository) -> None:
        self.blocking = repository

    def __repr__(self) -> str:
        return f"aio.{self.blocking!r}"

    @property
    def path(self) -> Path:
        """Its directory."""
        return self.blocking.path

    @classmethod
    async def open(cls, path: str | os.PathLike[str] | None = None, *, create: bool = False) -> Repository:
        """As Repository.open."""
        return cls(await in_thread(blocking_repository.Repository.open, path, create=create))

    async def snapshot(self, spec: str = "latest") -> Snapshot:
        """As Repository.snapshot."""
        return Snapshot(await in_thread(self.blocking.snapshot, spec))

    async def snapshots(self, newest: int | None = None) -> list[Snapshot]:
        """As Repository.snapshots."""
        return [Snapshot(found) for found in await in_thread(self.blocking.snapshots, newest)]

    async def branches(self) -> dict[str, Snapshot]:
        """As Repository.branches."""
        return {name: Snapshot(at) for name, at in (await in_thread(self.blocking.branches)).items()}

    async def tags(self) -> dict[str, Snapshot]:
        """As Repository.tags."""
        return {name: Snapshot(at) for name, at in (await in_thread(self.blocking.tags)).items()}

    async def diff(self, old: Snapshot | str, new: Snapshot | str = "latest", *, memory: bool = True) -> Difference:
        """As Repository.diff."""
        return await in_thread(self.blocking.diff, str(old), str(new), memory=memory)

    async def boxes(self, *, ended: bool = False) -> list[Box]:
        """As Repository.boxes."""
        return [Box(box) for box in await in_thread(self.blocking.boxes, ended=ended)]

    async def box(self, name: str) -> Box:
        """As Repository.box."""
        return Box(await in_thread(self.blocking.box, name))

    async def remote_of(self, storage: str) -> str:
        """As Repository.remote_of."""
        return await in_thread(self.blocking.remote_of, storage)

    async def start(
        self,
        argv: Sequence[str],
        *,
        name: str | None = None,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        network: Network = "none",
        ports: Sequence[int] = (),
        gpu: bool = False,
        base: str = "",
        ttl: float | None = None,
        memory: str | int | None = None,
        cpu: float | None = None,
        pids: int | None = None,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        storage: str = LOCAL,
        **more: Any,
    ) -> Box:
        """As Repository.start."""
        more |= {"memory": memory, "cpu": cpu, "pids": pids, "limits": limits, "storage": storage}
        more |= {"idle": idle, "secrets": secrets}
        call = partial(self.blocking.start, argv, name=name, env=env, cwd=cwd, network=network, ports=ports, **more)
        return Box(await in_thread(call, gpu=gpu, base=base, ttl=ttl, timeout=timeout, on_event=on_event))

    async def kernel(
        self,
        spec_name: str = "python3",
        *,
        name: str | None = None,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        network: Network = "none",
        ports: Sequence[int] = (),
        gpu: bool = False,
        base: str = "",
        ttl: float | None = None,
        memory: str | int | None = None,
        cpu: float | None = None,
        pids: int | None = None,
        timeout: float | None = blocking_repository.READY_S,
        on_event: OnEvent | None = None,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        storage: str = LOCAL,
        **more: Any,
    ) -> Box:
        """As Repository.kernel."""
        more |= {"ports": ports, "memory": memory, "cpu": cpu, "pids": pids, "limits": limits, "storage": storage}
        more |= {"idle": idle, "secrets": secrets}
        call = partial(self.blocking.kernel, spec_name, name=name, env=env, cwd=cwd, network=network, **more)
        return Box(await in_thread(call, gpu=gpu, base=base, ttl=ttl, timeout=timeout, on_event=on_event))

    async def restore(self, snapshot: str, name: str | None = None, **options: Any) -> Box:
        """As Repository.restore."""
        return Box(await in_thread(self.blocking.restore, snapshot, name, **options))


async def start(argv: Sequence[str], **options: Any) -> Box:
    """As ijfs.start."""
    return Box(await in_thread(blocking_repository.start, argv, **options))


async def kernel(spec_name: str = "python3", **options: Any) -> Box:
    """As ijfs.kernel."""
    return Box(await in_thread(blocking_repository.kernel, spec_name, **options))


async def restore(snapshot: str, name: str | None = None, **options: Any) -> Box:
    """As ijfs.restore."""
    return Box(await in_thread(blocking_repository.restore, snapshot, name, **options))


@asynccontextmanager
async def branches(source: Snapshot | Box, count: int = 2, *, env: Sequence[Env] = ()) -> AsyncIterator[list[Box]]:
    """As ijfs.branches."""
    block = forks.branches(source.blocking, count, env=env)
    boxes = await in_thread(block.__enter__)
    try:
        yield [Box(box) for box in boxes]
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(block.__exit__, None, None, None)


@asynccontextmanager
async def events(repository: str | os.PathLike[str] | None = None) -> AsyncIterator[AsyncIterator[RepositoryEvent]]:
    """As ijfs.events: a block in which everything that happens in a repository is heard.

    async with aio.events() as happening:
        async for event in happening:
            print(event.kind, event.instance, event.snapshot, event.text)
    """
    block = blocking_events.events(repository)
    watch = await in_thread(block.__enter__)
    send, receive = anyio.create_memory_object_stream["RepositoryEvent"](math.inf)

    def hear() -> None:
        for event in watch:
            anyio.from_thread.run_sync(send.send_nowait, event)

    try:
        with _one_error(), send, receive:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(anyio.to_thread.run_sync, hear, limiter=_threads()))
                try:
                    yield receive
                finally:
                    watch.stop()
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(block.__exit__, None, None, None)


async def explore(
    start: Snapshot | Box,
    actions: Actions,
    score: Score,
    *,
    width: int = 4,
    depth: int = 3,
    at_once: int = 8,
    on_node: Callable[[tuple[Action, ...], float], None] = lambda path, score: None,
) -> Node:
    """As ijfs.explore: `actions`, `score` and `on_node` are plain functions of plain objects, called in other
    threads."""
    call = partial(search.explore, start.blocking, actions, score, width=width, depth=depth, at_once=at_once)
    return await in_thread(call, on_node=on_node)
