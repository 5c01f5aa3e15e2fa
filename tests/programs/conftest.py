"""Fixture of the campaign; `make test-programs` runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "live"))
from live_env import why_not


@pytest.fixture(scope="session", autouse=True)
def campaign_machine() -> None:
    """Skips where it was not asked for, or where CRIU cannot work."""
    if not os.environ.get("IJFS_TEST_PROGRAMS"):
        pytest.skip("`make test-programs` runs these: they take a quarter of an hour")
    reason = why_not()
    if reason:
        pytest.skip(reason)
