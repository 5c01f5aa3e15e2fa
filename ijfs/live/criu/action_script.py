"""The moments at which CRIU waits for ijfs: its action scripts.

`post-dump`: all images are written, and the program still stands. `post-restore`: everything of the program is there,
and it does not run yet. CRIU runs a script and waits for it; the script is four lines of sh that speak with this
process over two FIFOs beside it. It finds them by its own path, `$0`, so that no path stands in its text, where a quote
in a directory's name would end a string. An answer other than `go` makes CRIU give up: a program that was being dumped
runs on. Called by command.py.
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
from typing import Literal

_SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = "${0##*/}" ] || exit 0
echo here > "${0%/*}/waits"
read -r answer < "${0%/*}/answer"
[ "$answer" = go ]
"""


Moment = Literal["post-dump", "post-restore"]


class ActionHook:
    """A context manager around one run of CRIU; `serve` runs `work` at the moment."""

    def __init__(self, directory: Path, moment: Moment, work: Callable[[], None] | None) -> None:
        self.script = directory / moment
        self.error: BaseException | None = None
        self.passed = False
        """The work was done, and CRIU was there to its end: until then nothing of the program moved."""
        self._work = work
        self._waits_path = directory / "waits"
        self._answer_path = directory / "answer"
        self._waits_fd = self._answer_fd = -1

    def __enter__(self) -> ActionHook:
        self._remove()
        for path in (self._waits_path, self._answer_path):
            os.mkfifo(path, 0o600)
        # Opened for both directions: neither this open nor the script's waits for the other side.
        self._waits_fd = os.open(self._waits_path, os.O_RDWR | os.O_CLOEXEC)
        self._answer_fd = os.open(self._answer_path, os.O_RDWR | os.O_CLOEXEC)
        self.script.write_text(_SCRIPT)
        self.script.chmod(0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._waits_fd)
        os.close(self._answer_fd)
        self._remove()

    def _remove(self) -> None:
        for path in (self._waits_path, self._answer_path, self.script):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def serve(self, criu: subprocess.Popen[bytes], deadline: float) -> None:
        """Wait for the moment, work, let CRIU go on; returns early when CRIU ends before. TimeoutExpired."""
        pidfd = os.pidfd_open(criu.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._waits_fd, selectors.EVENT_READ)
                selector.register(pidfd, selectors.EVENT_READ)
                ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
        finally:
            os.close(pidfd)
        if not ready:
            raise subprocess.TimeoutExpired(criu.args, 0)
        if self._waits_fd in ready:
            worked = self._worked()
            self.passed = worked and criu.poll() is None
            os.write(self._answer_fd, b"go\n" if worked else b"no\n")

    def _worked(self) -> bool:
        try:
            if self._work is not None:
                self._work()
        except BaseException as error:
            self.error = error
            return False
        return True
