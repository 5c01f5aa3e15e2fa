"""A person's terminal on that of a program: what `ijfs run -it` and `ijfs attach` do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli.app import App
from ijfs.cli.detach_keys import DetachKeys
from ijfs.cli.screen import Modes, shown_again
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.client.terminal import Attached

LEFT = None
"""In place of an exit status: the program runs on."""

FAR_TOO_LONG_S = 30.0
"""How long a program whose terminal broke off may take to be there again, or to be known as ended: going back in place
is a matter of a second, and a keeper writes down the end within some 10 ms."""
PAUSE_S = 0.02
REDRAW_S = 0.05
"""Between two sizes of the window: a full-screen program draws itself when it hears of another one."""
UNKNOWN_END = 1


def require_terminal(otherwise: str) -> None:
    """A usage error where nobody sits at standard input and output."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise click.UsageError(otherwise)


def window_size() -> tuple[int, int]:
    """Rows and columns of the window; what a window has mostly where there is none."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            rows, columns = struct.unpack("HHHH", fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8)))[:2]
            if rows and columns:
                return rows, columns
    return 24, 80


def attach(app: App, name: str, keys: bytes) -> int | None:
    """Show the terminal of a live program and type into it: its exit status, or LEFT. Going back in place is followed.
    InstanceExitedError, CommandError."""
    from ijfs.live.client import terminal

    attached = terminal.attach(app.repository_path, name)
    with _raw(), _told_of_resizes() as resized:
        view = _View(DetachKeys(keys), resized)
        try:
            while True:
                if view.show(attached):
                    return LEFT
                attached.close()
                again = _what_became(app, name)
                if isinstance(again, int):
                    return again
                attached = again
        finally:
            attached.close()
            _write(view.modes.undo())


def ended_before(app: App, name: str) -> int:
    """Show what a program wrote that had ended before anybody sat at its terminal; its exit status. IjfsError."""
    from ijfs.live.client import api as client

    again = _what_became(app, name)
    if not isinstance(again, int):
        again.close()
        return UNKNOWN_END
    with _raw():  # it was written for a terminal
        _write(Path(client.describe(app.repository_path, name).log).read_bytes())
    return again


def tell_why(app: App, name: str) -> None:
    """Say of a program that has ended that the kernel killed it for want of memory, where it did: else there is only
    an exit status."""
    from ijfs.live.client import api as client

    with contextlib.suppress(IjfsError):  # an ephemeral one is gone
        info = client.describe(app.repository_path, name)
        if info.status == "exited" and info.oom_kills and info.note:
            app.warn(f"`{name}` has ended, with exit status {info.exit_status}: it {info.note}")


def _what_became(app: App, name: str) -> Attached | int:
    """The terminal of the program that took its place, or how it ended."""
    from ijfs.live.client import api as client
    from ijfs.live.client import terminal

    deadline = time.monotonic() + FAR_TOO_LONG_S
    while True:
        with contextlib.suppress(IjfsError):
            if (info := client.describe(app.repository_path, name)).status == "exited":
                return UNKNOWN_END if info.exit_status is None else info.exit_status
            return terminal.attach(app.repository_path, name)
        if time.monotonic() > deadline:
            return UNKNOWN_END
        time.sleep(PAUSE_S)


class _View:
    """This terminal, showing the program's: across programs that take each other's place."""

    def __init__(self, keys: DetachKeys, resized: int) -> None:
        self.modes = Modes()
        self._keys = keys
        self._resized = resized
        self._typing = True
        self._first = True

    def show(self, attached: Attached) -> bool:
        """Until it breaks off (False), or the one who sits here leaves (True)."""
        from ijfs.live.client.terminal import REPLAY

        if not self._first:
            _write(self.modes.undo() + b"\x1b[H\x1b[2J")  # another program's screen
        self._first = False
        self._print(shown_again(attached.before, whole=len(attached.before) < REPLAY))
        with contextlib.suppress(OSError):
            self._fit(attached)
            while True:
                left = self._once(attached)
                if left is not None:
                    return left
        return False

    def _fit(self, attached: Attached) -> None:
        rows, columns = window_size()
        if self.modes.is_full_screen and rows > 1:
            attached.resize(rows - 1, columns)
            time.sleep(REDRAW_S)
        attached.resize(rows, columns)

    def _once(self, attached: Attached) -> bool | None:
        """Wait for anything, and do it. None: go on."""
        waited_for = [attached.socket.fileno(), self._resized, *([0] if self._typing else [])]
        ready, _, _ = select.select(waited_for, [], [])
        if self._resized in ready:
            os.read(self._resized, 4096)
            attached.resize(*window_size())
        if attached.socket.fileno() in ready:
            data = attached.read()
            if not data:
                return False
            self._print(data)
        return self._type(attached) if 0 in ready else None

    def _type(self, attached: Attached) -> bool | None:
        typed = os.read(0, 4096)
        if not typed:  # the window is gone; SIGHUP says so, too
            return True
        data, left = self._keys.feed(typed)
        attached.type(data)
        return True if left else None

    def _print(self, data: bytes) -> None:
        self.modes.feed(data)
        _write(data)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Each key goes to the program as it is, Ctrl-C too."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _told_of_resizes() -> Iterator[int]:
    """A descriptor to read from when the window has another size."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.signal(signal.SIGWINCH, lambda number, frame: None)
    waking = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(waking)
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)
