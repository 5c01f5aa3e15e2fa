"""What of the memory that a pager could bring in is there before it begins: CRIU has read it itself.

So it is with what forked processes share (criu/forked_memory.py). The keeper writes it down before it starts CRIU, and
the pager looks when CRIU hands a process over: it began to read before either knew. Where nothing is written, nothing
is there; a page that is there all the same costs a read in vain, no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

_NAME: Final = "present.json"

Spans = Sequence[tuple[int, int]]
"""Addresses [start, end)."""


def place(workdir: Path) -> Path:
    """The file in a restore's work directory."""
    return workdir / _NAME


def write(workdir: Path, spans: Mapping[int, Spans]) -> None:
    """For a pager that is given `place(workdir)`: by the processes' numbers in the images. Whole when CRIU starts."""
    place(workdir).write_bytes(msgspec.json.encode(spans))


def read(path: str | None, pid: int) -> list[tuple[int, int]]:
    """What is there of a process."""
    if path is None or not Path(path).exists():
        return []
    return msgspec.json.decode(Path(path).read_bytes(), type=dict[int, list[tuple[int, int]]]).get(pid, [])
