"""The service `filesystem.Filesystem`: files of one sandbox over Connect RPC. Their contents go another way
(transfers.py)."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.server import Endpoint

from ijfs.live.errors import InstanceExitedError
from ijfs.sdk import aio
from ijfs.serve.envd import messages as m
from ijfs.serve.envd.files import NoUserError, SandboxFiles
from ijfs.serve.envd.processes import Context, pause_of, user_of
from ijfs.serve.envd.rpc import Service, method
from ijfs.serve.envd.watching import NoWatcherError, Watch, Watchers
from ijfs_engine.errors import IjfsError

NAME = "filesystem.Filesystem"
T = TypeVar("T")

CODES = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.EEXIST: Code.ALREADY_EXISTS,
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: Code.RESOURCE_EXHAUSTED,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
}


def service(repo: Path, name: str, watchers: Watchers) -> Service:
    """The service as an ASGI application."""
    calls = Filesystem(repo, name, watchers)

    def unary(name: str, input: type[Any], output: type[Any], call: Any) -> Endpoint[Any, Any]:
        return Endpoint.unary(method(NAME, name, input, output), call)

    return Service(
        NAME,
        {
            "Stat": unary("Stat", m.PathRequest, m.EntryResponse, calls.stat),
            "MakeDir": unary("MakeDir", m.PathRequest, m.EntryResponse, calls.make_dir),
            "Move": unary("Move", m.MoveRequest, m.EntryResponse, calls.move),
            "ListDir": unary("ListDir", m.ListDirRequest, m.ListDirResponse, calls.list_dir),
            "Remove": unary("Remove", m.PathRequest, m.Nothing, calls.remove),
            "WatchDir": Endpoint.server_stream(
                method(NAME, "WatchDir", m.WatchRequest, m.WatchEvents), calls.watch_dir
            ),
            "CreateWatcher": unary("CreateWatcher", m.WatchRequest, m.Watcher, calls.create_watcher),
            "GetWatcherEvents": unary("GetWatcherEvents", m.Watcher, m.WatcherEvents, calls.get_watcher_events),
            "RemoveWatcher": unary("RemoveWatcher", m.Watcher, m.Nothing, calls.remove_watcher),
        },
    )


class Filesystem:
    """The methods."""

    def __init__(self, repo: Path, name: str, watchers: Watchers) -> None:
        self._repo, self._name, self._watchers = repo, name, watchers

    async def _do(self, ctx: Context, call: Callable[[SandboxFiles], T]) -> T:
        """Something with the files, in a thread."""
        user = user_of(ctx)

        def run() -> T:
            with SandboxFiles(self._repo, self._name, user) as files:
                return call(files)

        with told():
            return await aio.in_thread(run)

    async def stat(self, request: m.PathRequest, ctx: Context) -> m.EntryResponse:
        """One file."""
        return m.EntryResponse(entry=await self._do(ctx, lambda files: files.entry(request.path)))

    async def make_dir(self, request: m.PathRequest, ctx: Context) -> m.EntryResponse:
        """A directory with all above it; ALREADY_EXISTS where something is there."""

        def make(files: SandboxFiles) -> m.EntryInfo:
            if files.exists(request.path):
                raise FileExistsError(errno.EEXIST, "it is there already", request.path)
            files.access.make_directory(files.whole(request.path))
            return files.entry(request.path)

        return m.EntryResponse(entry=await self._do(ctx, make))

    async def move(self, request: m.MoveRequest, ctx: Context) -> m.EntryResponse:
        """Another name."""

        def move(files: SandboxFiles) -> m.EntryInfo:
            files.access.rename(files.whole(request.source), files.whole(request.destination))
            return files.entry(request.destination)

        return m.EntryResponse(entry=await self._do(ctx, move))

    async def list_dir(self, request: m.ListDirRequest, ctx: Context) -> m.ListDirResponse:
        """What is in a directory."""
        entries = await self._do(ctx, lambda files: files.entries(request.path, request.depth))
        return m.ListDirResponse(entries=tuple(entries))

    async def remove(self, request: m.PathRequest, ctx: Context) -> m.Nothing:
        """A file, or a directory with all that is in it; nothing where there is none."""

        def remove(files: SandboxFiles) -> None:
            with contextlib.suppress(FileNotFoundError):
                files.access.remove(files.whole(request.path))

        await self._do(ctx, remove)
        return m.Nothing()

    async def watch_dir(self, request: m.WatchRequest, ctx: Context) -> AsyncIterator[m.WatchEvents]:
        """What happens in a directory, as it happens."""
        watch = await self._watch(request, ctx)
        try:
            yield m.WatchEvents(start=m.Nothing())
            while True:
                events: tuple[m.FilesystemEvent, ...] | None = None
                with anyio.move_on_after(pause_of(ctx)):
                    events = await watch.next()
                for event in events or ():
                    yield m.WatchEvents(filesystem=event)
                if events is None:
                    yield m.WatchEvents(keepalive=m.Nothing())
        finally:
            watch.close()

    async def create_watcher(self, request: m.WatchRequest, ctx: Context) -> m.Watcher:
        """Begin to watch for a client that asks now and then."""
        return m.Watcher(watcher_id=self._watchers.add(await self._watch(request, ctx)))

    async def _watch(self, request: m.WatchRequest, ctx: Context) -> Watch:
        directory = await self._do(ctx, lambda files: files.whole(request.path))
        with told():
            return await aio.in_thread(
                Watch, self._repo, self._name, directory, recursive=request.recursive, with_entry=request.include_entry
            )

    async def get_watcher_events(self, request: m.Watcher, ctx: Context) -> m.WatcherEvents:
        """What happened since it was last asked."""
        with told():
            return m.WatcherEvents(events=await aio.in_thread(self._watchers.find(request.watcher_id).now))

    async def remove_watcher(self, request: m.Watcher, ctx: Context) -> m.Nothing:
        """Watch no more."""
        with told():
            self._watchers.remove(request.watcher_id)
        return m.Nothing()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What is wrong, as the protocol says it."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or 'the file'}: {(error.strerror or str(error)).lower()}"
        raise ConnectError(CODES.get(error.errno or 0, Code.INVALID_ARGUMENT), message) from None
    except NoWatcherError as error:
        raise ConnectError(Code.NOT_FOUND, str(error)) from None
    except NoUserError as error:
        raise ConnectError(Code.UNAUTHENTICATED, str(error)) from None
    except InstanceExitedError as error:
        raise ConnectError(Code.UNAVAILABLE, f"the sandbox was not found: {error}") from None
    except IjfsError as error:
        raise ConnectError(Code.INTERNAL, str(error)) from None
