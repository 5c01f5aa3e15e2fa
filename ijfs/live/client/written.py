"""Where what a program has written lies now, and which snapshot it stands on. For comparing the one with the other.

What a save would keep: the writable layers, shared folders and /dev/shm of a live program; of an ended one the layers,
which are what is left. What a program put into /dev is left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ijfs.live.checkpoint.layers import WritableLayer, layers_of, shared_layers, upper_directories
from ijfs.live.client.record import record_of
from ijfs.live.model.paths import InstancePaths
from ijfs.live.process import procfs
from ijfs.live.sandbox import disk


@dataclass(frozen=True, slots=True)
class Written:
    """What a program has written since it began. `snapshot`: the id of the one it stands on, if there is one."""

    layers: tuple[WritableLayer, ...]
    snapshot: str | None
    live: bool


@contextlib.contextmanager
def written(repo: str | os.PathLike[str], name: str) -> Iterator[Written]:
    """Of the live or ended instance of that name; a disk of its own is open meanwhile. NoInstanceError."""
    paths = InstancePaths.of(repo, name)
    record = record_of(paths)
    box = paths.sandbox(record.generation)
    program = record.program if record.program is not None and procfs.is_alive(record.program) else None
    root = Path(f"/proc/{program.pid}/root") if program is not None else None
    with disk.opened(box) as place:
        volumes = [
            (volume, place / upper.relative_to(box.layers)) for volume, upper in upper_directories(box, record.volumes)
        ]
        shm = root / "dev/shm" if root is not None else None
        layers = layers_of(place / box.upper.relative_to(box.layers), volumes, shm)
        shared = list(shared_layers(box, record.volumes, root)) if root is not None else []
        found = tuple(layer for layer in (*layers, *shared) if layer.outside.is_dir())
        yield Written(found, record.snapshot, root is not None)
