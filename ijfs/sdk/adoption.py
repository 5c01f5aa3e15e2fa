"""A program's files, taken home onto this machine: `Box.adopt`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ijfs.live.client.adopt import Adoption
from ijfs.live.client.winner import family, settle
from ijfs_engine import Repository
from ijfs_engine.errors import PartialError


def adopt(
    repo: Path, name: str, paths: Sequence[str], *, keep: Literal["ours", "theirs"] | None, winner: bool
) -> list[str]:
    """The paths that were put. ConflictError; PartialError where some could not be put: the rest is, and there is no
    winner then."""
    with Repository.open(repo) as repository:
        won = family(repository, name) if winner else None
        adoption = Adoption(repository, name)
        done = list(adoption.take_home(adoption.chosen(adoption.compare(paths), keep)))
        left = [f"{os.fsdecode(item.step.path)}: {item.left}" for item in done if item.left]
        if left:
            raise PartialError(f"not all of `{name}` was taken home ({'; '.join(left)})")
        if won is not None:
            settle(repository, won)
        return [f"/{os.fsdecode(item.step.path).lstrip('/')}" for item in done]
