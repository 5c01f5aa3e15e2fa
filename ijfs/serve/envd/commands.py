"""Commands that run in one sandbox for clients: started, followed by any number of streams, given input, ended.

A command is entered from outside (ijfs.live.sandbox.enter) and lives as long as this server does; the client that
started it may come and go. Output goes to who follows it at that moment; who is slow holds the command back, as a pipe
does, and where nobody follows it is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ijfs.live.client import api as client
from ijfs.live.errors import CommandError
from ijfs.sdk import aio
from ijfs.serve.envd import terminal
from ijfs.serve.envd.messages import Data, Ended, ProcessConfig, ProcessEvent, ProcessInfo, PtySize, Selector
from ijfs_engine.errors import IjfsError, UnknownNameError

PIECE = 1 << 16
"""Bytes of output that are sent together at most."""
AHEAD = 16
"""Pieces that a follower may be behind before the command waits for it."""
END_S = 5.0
"""How long a killed command's end is waited for."""

Read = Callable[[], Awaitable[bytes]]
Followed = MemoryObjectReceiveStream[ProcessEvent]


class NoCommandError(UnknownNameError):
    """No command with this pid or tag runs."""

    default_hint = "`commands.list` shows those that run"


class NoInputError(IjfsError):
    """A command that takes no input, or has no terminal."""


@dataclass(eq=False)
class Running:
    """One command. `pid` is the sandbox's."""

    pid: int
    config: ProcessConfig
    tag: str | None
    process: asyncio.subprocess.Process
    terminal: int | None = None
    expiry: asyncio.TimerHandle | None = None
    followers: list[MemoryObjectSendStream[ProcessEvent]] = field(default_factory=list)

    @property
    def info(self) -> ProcessInfo:
        """As clients are told of it."""
        return ProcessInfo(config=self.config, pid=self.pid, tag=self.tag)

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it started."""
        self._signal(signal.SIGUSR1)  # enter.py makes SIGKILL of it

    def kill_in(self, seconds: float) -> None:
        """Kill it then, whoever follows it, unless it has ended."""
        self.expiry = asyncio.get_running_loop().call_later(seconds, self.kill)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def write(self, data: bytes) -> None:
        """To its standard input or terminal; NoInputError where it has none, or does not read any more."""
        if self.terminal is not None:
            await aio.in_thread(os.write, self.terminal, data)
            return
        if self.process.stdin is None:
            raise NoInputError(f"command {self.pid} was started without an input")
        try:
            self.process.stdin.write(data)
            await self.process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise NoInputError(f"command {self.pid} reads no more") from None

    def close_input(self) -> None:
        """No more input."""
        if self.terminal is not None:
            os.write(self.terminal, terminal.END_OF_INPUT)
        elif self.process.stdin is not None:
            self.process.stdin.close()

    def resize(self, size: PtySize) -> None:
        """Of its terminal; NoInputError where it has none."""
        if self.terminal is None:
            raise NoInputError(f"command {self.pid} has no terminal")
        terminal.resize(self.terminal, size)

    @contextlib.contextmanager
    def followed(self) -> Iterator[Followed]:
        """Its events from now on; the stream ends with the command."""
        send, receive = anyio.create_memory_object_stream[ProcessEvent](AHEAD)
        self.followers.append(send)
        with receive, send:
            try:
                yield receive
            finally:
                with contextlib.suppress(ValueError):
                    self.followers.remove(send)

    async def tell(self, event: ProcessEvent) -> None:
        """Everyone who follows it, waiting for those that are slow."""
        for follower in tuple(self.followers):
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await follower.send(event)


class Commands:
    """All that run in one sandbox for clients."""

    def __init__(self, repo: Path, name: str) -> None:
        self._repo, self._name = repo, name
        self._running: dict[int, Running] = {}
        self._watching: set[asyncio.Task[None]] = set()

    @property
    def infos(self) -> tuple[ProcessInfo, ...]:
        """Those that run."""
        return tuple(running.info for running in self._running.values())

    def find(self, selector: Selector) -> Running:
        """By pid or tag; NoCommandError."""
        for running in self._running.values():
            if selector.pid == running.pid or (selector.tag is not None and selector.tag == running.tag):
                return running
        which = f"tag {selector.tag}" if selector.tag is not None else f"pid {selector.pid}"
        raise NoCommandError(f"no command with {which} runs in {self._name}")

    @contextlib.asynccontextmanager
    async def started(
        self, config: ProcessConfig, *, user: str | None, tag: str | None, has_input: bool, size: PtySize | None
    ) -> AsyncIterator[tuple[Running, Followed]]:
        """Start one, and follow it from its first byte. InstanceExitedError; NoUserError, CommandError."""
        running, reads = await self._start(config, user=user, tag=tag, has_input=has_input, size=size)
        with running.followed() as events:
            self._running[running.pid] = running
            # Begins when `events` is there: nothing of the output is lost.
            watching = asyncio.create_task(self._watch(running, reads))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
            yield running, events

    async def _start(
        self, config: ProcessConfig, *, user: str | None, tag: str | None, has_input: bool, size: PtySize | None
    ) -> tuple[Running, dict[str, Read]]:
        told, tell = os.pipe()
        with os.fdopen(told, "rb") as answer:
            try:
                line = await aio.in_thread(
                    client.exec_line,
                    self._repo,
                    self._name,
                    [config.cmd, *config.args],
                    cwd=config.cwd or None,
                    env=config.envs,
                    session=True,
                    user=user,
                    tell=tell,
                )
                process, master = await self._spawn(line, tell, has_input, size)
            finally:
                os.close(tell)
            pid = await aio.in_thread(answer.read)
        reads = _reads(process, master)
        if not pid:
            raise CommandError((await _all(reads)).strip() or f"{config.cmd} could not be started")
        return Running(int(pid), config, tag, process, master), reads

    async def _spawn(
        self, line: list[str], tell: int, has_input: bool, size: PtySize | None
    ) -> tuple[asyncio.subprocess.Process, int | None]:
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        if size is None:
            stdin = pipe if has_input else nothing
            process = await asyncio.create_subprocess_exec(
                *line, stdin=stdin, stdout=pipe, stderr=pipe, pass_fds=[tell], start_new_session=True, limit=PIECE
            )
            return process, None
        master, slave = await aio.in_thread(terminal.open_in, self._repo, self._name, size)
        try:
            process = await asyncio.create_subprocess_exec(
                *line, stdin=slave, stdout=slave, stderr=slave, pass_fds=[tell], start_new_session=True
            )
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        return process, master

    async def _watch(self, running: Running, reads: dict[str, Read]) -> None:
        """Hand out what it writes, then how it ended."""
        try:
            await asyncio.gather(*(self._hand_out(running, name, read) for name, read in reads.items()))
            status = await running.process.wait()
        finally:
            self._running.pop(running.pid, None)
            if running.expiry is not None:
                running.expiry.cancel()
            if running.terminal is not None:
                os.close(running.terminal)
        await running.tell(ProcessEvent(end=_ended(status)))
        for follower in running.followers:
            follower.close()

    async def _hand_out(self, running: Running, name: str, read: Read) -> None:
        while data := await read():
            await running.tell(ProcessEvent(data=Data(**{name: data})))

    async def end(self) -> None:
        """Kill all of them, and wait for their end."""
        for running in list(self._running.values()):
            running.kill()
        if self._watching:
            await asyncio.wait(self._watching, timeout=END_S)


def _reads(process: asyncio.subprocess.Process, master: int | None) -> dict[str, Read]:
    """How what it writes is read, by the stream's name."""
    if master is not None:
        return {"pty": partial(aio.in_thread, terminal.read, master, PIECE)}
    assert process.stdout is not None
    assert process.stderr is not None
    return {"stdout": partial(process.stdout.read, PIECE), "stderr": partial(process.stderr.read, PIECE)}


async def _all(reads: dict[str, Read]) -> str:
    text = b""
    for read in reads.values():
        while data := await read():
            text += data
    return text.decode(errors="replace")


def _ended(status: int) -> Ended:
    """As Go's os/exec words it, which is what the clients' users know."""
    code = status if status >= 0 else 128 - status
    return Ended(
        exit_code=code, exited=True, status=f"exit status {code}", error=f"exit status {code}" if code else None
    )
