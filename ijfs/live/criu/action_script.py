"""The moment of a dump in which all images are written and the program still stands: CRIU's post-dump action script.

CRIU runs a script and waits for it; the script is three lines of sh that speak with this process over two FIFOs beside
it. It finds them by its own path, `$0`, so that no path stands in its text, where a quote in a directory's name would
end a string. An answer other than `go` makes CRIU give the dump up, and the program runs on. Called by command.py.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
echo frozen > "${0%/*}/frozen"
read -r answer < "${0%/*}/thaw"
[ "$answer" = go ]
"""


class PostDumpHook:
    """A context manager around one dump; `serve` runs `work` when the program stands still."""

    def __init__(self, directory: Path, work: Callable[[], None] | None) -> None:
        self.script = directory / "post-dump"
        self.error: BaseException | None = None
        self._work = work
        self._frozen_path = directory / "frozen"
        self._thaw_path = directory / "thaw"
        self._frozen_fd = self._thaw_fd = -1

    def __enter__(self) -> PostDumpHook:
        self._remove()
        for path in (self._frozen_path, self._thaw_path):
            os.mkfifo(path, 0o600)
        # Opened for both directions: neither this open nor the script's waits for the other side.
        self._frozen_fd = os.open(self._frozen_path, os.O_RDWR | os.O_CLOEXEC)
        self._thaw_fd = os.open(self._thaw_path, os.O_RDWR | os.O_CLOEXEC)
        self.script.write_text(_SCRIPT)
        self.script.chmod(0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._frozen_fd)
        os.close(self._thaw_fd)
        self._remove()

    def _remove(self) -> None:
        for path in (self._frozen_path, self._thaw_path, self.script):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def serve(self, criu: subprocess.Popen[bytes], deadline: float) -> None:
        """Wait for the moment, work, let CRIU go on; returns early when CRIU ends before. TimeoutExpired."""
        pidfd = os.pidfd_open(criu.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._frozen_fd, selectors.EVENT_READ)
                selector.register(pidfd, selectors.EVENT_READ)
                ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
        finally:
            os.close(pidfd)
        if not ready:
            raise subprocess.TimeoutExpired(criu.args, 0)
        if self._frozen_fd in ready:
            os.write(self._thaw_fd, b"go\n" if self._worked() else b"no\n")

    def _worked(self) -> bool:
        try:
            if self._work is not None:
                self._work()
        except BaseException as error:
            self.error = error
            return False
        return True
