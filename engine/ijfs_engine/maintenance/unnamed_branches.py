"""Branches that nobody named: what a branch had before its program went back to an older snapshot.

`Refs.set_aside` keeps that as `NAME.1`, `NAME.2`, … (or gc would take it). A program that begins again and again from
one snapshot leaves one each time; `prune` lets old ones go by its rule.
"""

from __future__ import annotations

import re
from typing import Final

from ijfs_engine.format.records import ObjectId
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import RefChange, set_aside_why

_NUMBERED: Final = re.compile(r"branch/(?P<stem>.+)\.\d+")


def unnamed(repository: OpenRepository, before_ns: int) -> dict[str, ObjectId]:
    """Such branches with their heads, made before a time (of day, in ns). One that was moved since, by a save or by a
    person, is somebody's."""
    heads = repository.refs.branches()
    last: dict[str, RefChange] = {}
    for change in repository.refs.log():
        last.setdefault(change.name, change)
    found = {change.name.removeprefix("branch/") for change in last.values() if _is_unnamed(change, before_ns)}
    return {name: head for name, head in heads.items() if name in found}


def _is_unnamed(change: RefChange, before_ns: int) -> bool:
    """Whether the last change of a branch was that it was made so, before that time."""
    match = _NUMBERED.fullmatch(change.name)
    return (
        match is not None
        and change.old is None
        and change.time_ns < before_ns
        and change.why == set_aside_why(match["stem"])
    )
