"""Who closes descriptors: a number that is closed twice may be somebody else's by then, and their bytes go astray."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

_close = os.close


class Closing:
    """Stands before `os.close`: notes who closes what is not open, and fails one close, as a signal that comes in
    meanwhile does, or a disk that is far away. The kernel has closed the descriptor then."""

    def __init__(self, at: int = 0, failure: Callable[[], BaseException] = KeyboardInterrupt) -> None:
        self.count = 0
        self.wrong: list[str] = []
        """Where numbers were closed that were not open."""
        self._at = at
        self._failure = failure

    def __call__(self, fd: int) -> None:
        # What is raised in a finalizer is lost in any case.
        in_finalizer = sys._getframe(1).f_code.co_name == "__del__"
        self.count += not in_finalizer
        try:
            _close(fd)
        except OSError as error:
            self.wrong.append(f"{error}: {fd}\n{''.join(traceback.format_stack(limit=8)[:-1])}")
            raise
        if self.count == self._at and not in_finalizer:
            raise self._failure()


def open_descriptors() -> dict[int, str]:
    """What this process has open, but for what lists it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
