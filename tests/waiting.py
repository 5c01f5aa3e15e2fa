"""Waiting in tests: for something to come true, and how long anything may take.

Every limit by the wall clock goes through `patient`, so that one variable makes all of them longer on a machine that is
slow or busy: `IJFS_TEST_PATIENCE=4 make test`. What must *not* happen within a time is not stretched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

PATIENCE = float(os.environ.get("IJFS_TEST_PATIENCE") or 1)
"""How many times longer than on a quiet machine of two cores anything may take."""


def patient(seconds: float) -> float:
    """A limit in seconds for something that takes far less on a quiet machine."""
    return seconds * PATIENCE


def eventually(condition: Callable[[], Any], within_s: float = 15.0, *, every_s: float = 0.02) -> bool:
    """Whether the condition came true in time; it is asked at least once."""
    deadline = time.monotonic() + patient(within_s)
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
