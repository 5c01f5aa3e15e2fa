"""What the engine's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import Closing

from ijfs_engine import Repository


@pytest.fixture(autouse=True)
def closing() -> Iterator[Closing]:
    """Nothing in this process closes a descriptor that is not open: the number may be somebody else's the next time."""
    watch, before = Closing(), os.close
    os.close = watch
    yield watch
    os.close = before
    assert not watch.wrong, "\n".join(watch.wrong)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo") as made:
        yield made
