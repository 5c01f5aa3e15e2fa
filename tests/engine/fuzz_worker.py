"""Processes that go through cases one after another, and of which any case may be the last.

A process for every case spent half of its time on being forked and on touching its parent's memory. So a worker does
some hundred, and notes in a file at which step of which it is: when it ends by a signal, or hangs, that tells why, and
another takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LIMIT_S: Final = 60.0
"""A case takes 30 ms."""
CASES: Final = 200
"""Of one process: what it may have kept of earlier cases ends there."""
_MEMORY: Final = 6 << 30
_FILE: Final = 200 << 20
_ANSWER: Final = 1 << 16

Note = Callable[[str], None]
"""Says what is being done now, for when it is the last thing."""
Work = Callable[[int, Note], Any]
"""Goes through a case; what came of it, as JSON."""


class DiedError(Exception):
    """How a worker ended, and at what."""


class Worker:
    """One process at a time for one folder."""

    def __init__(self, folder: Path, work: Work) -> None:
        self._work = work
        self._notes = folder / "notes"
        self._stderr = folder / "stderr"
        self._pid = 0
        self._requests = self._answers = -1
        self._left = 0
        self._since = 0.0

    def begin(self, number: int) -> None:
        """Have it go through a case."""
        if not self._left:
            self.close()
            self._start()
        self._left -= 1
        self._since = time.monotonic()
        os.write(self._requests, b"%d\n" % number)

    def fileno(self) -> int:
        """What to wait at for its answer."""
        return self._answers

    def is_late(self) -> bool:
        """Whether its case takes longer than any may."""
        return time.monotonic() > self._since + LIMIT_S * float(os.environ.get("IJFS_TEST_PATIENCE", "1"))

    def answer(self) -> Any:
        """What came of the case. DiedError."""
        said = b""
        while not said.endswith(b"\n"):
            if self.is_late():
                raise self._died("hung")
            if not select.select([self._answers], [], [], 1.0)[0]:
                continue
            part = os.read(self._answers, _ANSWER)
            if not part:
                raise self._died(None)
            said += part
        return json.loads(said)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._requests)
            os.close(self._answers)
        self._pid = self._left = 0

    def _died(self, how: str | None) -> DiedError:
        if how is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, os.WUNTRACED)[1])
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._pid = self._left = 0
            os.close(self._requests)
            os.close(self._answers)
        else:
            self.close()
        return DiedError(f"{how} at {self._notes.read_text().strip()}: {self._stderr.read_text()[-300:]}")

    def _start(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._left = CASES
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._requests)
                os.close(self._answers)
                self._limit()
                self._serve(requests, answers)
                os._exit(0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                os._exit(99)
        with contextlib.suppress(OSError):  # the child does so as well: whoever comes first
            os.setpgid(self._pid, self._pid)
        os.close(requests)
        os.close(answers)

    # --- the process's side

    def _limit(self) -> None:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
        os.dup2(os.open(self._stderr, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), 2)

    def _serve(self, requests: int, answers: int) -> None:
        with open(requests) as asked:
            notes = os.open(self._notes, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            for line in asked:
                answer = self._work(int(line), lambda what: _note(notes, what))
                said = memoryview(json.dumps(answer).encode() + b"\n")
                while said:
                    said = said[os.write(answers, said) :]


def _note(fd: int, what: str) -> None:
    os.pwrite(fd, what[:60].ljust(60).encode(), 0)
