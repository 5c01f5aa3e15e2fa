"""A repository that is open for as long as one request uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ijfs_engine import Repository

T = TypeVar("T")


def in_repository(repo: Path, use: Callable[[Repository], T]) -> T:
    """What `use` makes of a repository. Blocks; NoRepositoryError."""
    with Repository.open(repo) as repository:
        return use(repository)
