"""What a live program loses when it ends now or goes back: for `stop`, `restore --replace`, `ps`, `show`.

Whether it changed since its save nobody knows without reading all its memory: one that ran may have.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ijfs.cli import text

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo


def of(info: InstanceInfo) -> str:
    """What no snapshot has of a live program."""
    return f"what it did since {info.snapshot[: text.SHORT_ID]}" if info.snapshot else "all that it did"


def by_ending(info: InstanceInfo, *, wrote: bool) -> str:
    """What its end takes: memory and what lies in memory; `wrote`: and files, where it is forgotten, too."""
    shared = _files_in_memory(info)
    parts = [
        "its memory",
        *([f"{text.count(shared, 'file')} in /dev/shm"] if shared else []),
        *(["what it wrote"] if wrote else []),
    ]
    return f"{of(info)}: {text.listing(parts)}"


def question(infos: Sequence[InstanceInfo], *, wrote: Collection[str] = ()) -> str:
    """Whether they may end, to be asked at a terminal. `wrote`: whose files would go, too."""
    if len(infos) == 1:
        return f"`{infos[0].name}` is live and loses {by_ending(infos[0], wrote=infos[0].name in wrote)}. Stop it?"
    names = text.listing(f"`{info.name}`" for info in infos)
    return f"{names} are live and lose what they did since they were saved. Stop them?"


def _files_in_memory(info: InstanceInfo) -> int:
    """Files in a program's /dev/shm; 0 where it has just ended or that may not be looked at."""
    try:
        return sum(len(files) for _, _, files in os.walk(f"/proc/{info.pid}/root/dev/shm")) if info.pid else 0
    except OSError:
        return 0
