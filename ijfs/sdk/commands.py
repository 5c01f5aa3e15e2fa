"""A command that runs inside a live program's sandbox, with its input and output in the caller's hands.

Made by `Box.popen`; `Box.exec` is one that is waited for. The command is a session of its own: what it starts ends with
it. It is no part of the program: a save does not keep it, and it runs on through one.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from ijfs.sdk import calls
from ijfs.sdk.calls import CallTimeoutError
from ijfs_engine.errors import IjfsError

BLOCK = 1 << 16
LOOK_S = 0.1
"""Between two looks at whether the caller still wants a command."""
KILL_WAIT_S = 5.0
"""How long a killed command's output is still waited for: a process that left its session may hold it open."""

OnBytes = Callable[[str, bytes], None]
"""Called with "stdout" or "stderr" and each piece as it comes."""


class CommandFailedError(IjfsError):
    """A command ended with another exit status than 0; `completed` has it all."""

    completed: Completed


class CommandTimeoutError(CallTimeoutError):
    """A command was not done in time and was killed. `completed` has what it wrote until then."""

    default_hint = "give it more time, or start it with popen"
    completed: Completed


@dataclass(frozen=True)
class Completed:
    """A command that has ended: its exit status as a shell has it (128 + the signal's number), what it wrote."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it wrote to its standard output, as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Completed:
        """Itself, or CommandFailedError when it failed."""
        if self.exit_code == 0:
            return self
        last = self.stderr.decode(errors="replace").strip().splitlines()[-1:]
        error = CommandFailedError(
            f"the command ended with status {self.exit_code}{': ' if last else ''}{''.join(last)}"
        )
        error.completed = self
        raise error


class Command:
    """A command that may be running; a context manager, which kills it at its end. For one thread at a time, but for
    `write`, `signal` and `kill`."""

    def __init__(self, line: Sequence[str], *, has_input: bool) -> None:
        """`line`: as `ijfs.live.client.api.exec_line` makes it."""
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a ^C at the caller's terminal is the caller's
        )
        self._pieces: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._open = 2
        self._kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        for name, pipe in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            assert pipe is not None
            threading.Thread(target=self._read, args=[name, pipe], name=f"ijfs-{name}", daemon=True).start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.close_input()
        self._process.wait()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        with pipe:
            while data := pipe.raw.read(BLOCK):  # type: ignore[attr-defined]
                self._pieces.put((name, data))
        self._pieces.put((name, b""))

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def write(self, data: bytes | str) -> None:
        """To its standard input; BrokenPipeError when it does not read any more."""
        assert self._process.stdin is not None, "the command was started without input"
        self._process.stdin.write(data.encode() if isinstance(data, str) else data)
        self._process.stdin.flush()

    def close_input(self) -> None:
        """Its standard input ends here."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def signal(self, number: int) -> None:
        """Send SIGTERM, SIGINT, SIGHUP or SIGKILL to it and to all that it started; nothing where it has ended."""
        sent = signal.SIGUSR1 if number == signal.SIGKILL else signal.Signals(number)
        if sent not in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            raise ValueError(f"{sent.name} is not handed on to a command")
        self._process.send_signal(sent)  # sandbox/enter.py, which hands it on

    def kill(self) -> None:
        """End it and all that it started, now."""
        self.signal(signal.SIGKILL)

    def pieces(self, timeout: float | None = None) -> Iterator[tuple[str, bytes]]:
        """Its output as it comes: ("stdout" or "stderr", bytes), until both are closed. When the time is over, or
        nobody wants it any more, the command is killed and CommandTimeoutError raised."""
        deadline = None if timeout is None else time.monotonic() + timeout
        cancellation = calls.current()
        while self._open:
            piece = self._next(LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic()))
            if piece is not None:
                yield piece
            elif cancellation.cancelled or (deadline is not None and time.monotonic() >= deadline):
                yield from self._last_pieces()
                raise self._out_of_time(timeout)

    def _next(self, wait_s: float) -> tuple[str, bytes] | None:
        """The next piece, which is kept for `wait` too; None where none comes in time, or a pipe has ended."""
        try:
            name, data = self._pieces.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            return None
        if not data:
            self._open -= 1
            return None
        self._kept[name].append(data)
        return name, data

    def _last_pieces(self) -> Iterator[tuple[str, bytes]]:
        self.kill()
        until = time.monotonic() + KILL_WAIT_S
        while self._open and time.monotonic() < until:
            if (piece := self._next(until - time.monotonic())) is not None:
                yield piece

    def _out_of_time(self, timeout: float | None) -> CommandTimeoutError:
        after = f" after {timeout:g} s" if timeout is not None else ""
        error = CommandTimeoutError(f"the command is not done{after}; it was killed")
        error.completed = self._completed()
        return error

    def wait(self, timeout: float | None = None, *, on_output: OnBytes | None = None) -> Completed:
        """Wait for its end; what it wrote that `pieces` did not give out goes to `on_output`. CommandTimeoutError."""
        for name, data in self.pieces(timeout):
            if on_output is not None:
                on_output(name, data)
        return self._completed()

    def _completed(self) -> Completed:
        status = self._process.wait()
        code = status if status >= 0 else 128 - status
        return Completed(code, b"".join(self._kept["stdout"]), b"".join(self._kept["stderr"]))


def feed(command: Command, data: bytes) -> None:
    """Write all of a command's input from a thread of its own, beside the reading of what it answers."""

    def run() -> None:
        with contextlib.suppress(OSError):  # it does not read on: its affair
            command.write(data)
        command.close_input()

    threading.Thread(target=run, name="ijfs-stdin", daemon=True).start()
