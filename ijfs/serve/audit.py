"""The audit log: a JSON object a line for each call that changes something, appended and never rewritten.

The file is opened for each line: who rotates it needs to tell the server nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec


class Audit:
    """One file, 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **fields: Any) -> None:
        """One line, with the time. OSError where it cannot be written: what is not noted is not done in silence."""
        line = msgspec.json.encode({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields}) + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
