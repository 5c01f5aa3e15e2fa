"""How the tests call ijfs, and what they get back. Used by conftest.py's fixtures and the tests of the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COMMAND = [sys.executable, "-P", "-m", "ijfs.cli"]


@dataclass(frozen=True)
class Result:
    """What a call of ijfs left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


Ijfs = Callable[..., Result]
