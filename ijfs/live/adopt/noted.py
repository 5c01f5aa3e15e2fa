"""What earlier adopts of an instance have put on the machine: a file in its directory, for plan.py.

A snapshot needs none: what was put is what it has.

Lost, the next adopt takes what an earlier one wrote for somebody's change, and asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ijfs.live.checkpoint.ahead import StatKey
from ijfs.live.model.record_file import replace_file

_decoder = msgspec.msgpack.Decoder(dict[bytes, StatKey])


def read(path: Path) -> dict[bytes, StatKey]:
    """Path on the machine to what was put there."""
    try:
        return _decoder.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}


def write(path: Path, notes: Mapping[bytes, StatKey]) -> None:
    """Keep them. StorageError."""
    replace_file(path, msgspec.msgpack.encode(dict(notes)))
