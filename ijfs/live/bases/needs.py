"""Who needs a base: snapshots whose program ran on it, instances that run on it. Asked before anything of one goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ijfs.live.errors import NoInstanceError
from ijfs.live.model.paths import InstancePaths, live_directory
from ijfs.live.model.record_file import read_record
from ijfs_engine import Repository, Snapshot


def who_needs(repository: Repository) -> dict[str, list[str]]:
    """A base's snapshot (hex) → those that need it, as a person is told of them."""
    found: dict[str, list[str]] = {}
    for snapshot in repository.snapshots():
        base = base_of(snapshot)
        if base is not None:
            found.setdefault(base, []).append(f"snapshot {snapshot.id.hex()[:10]} of {_program(snapshot)}")
    for name, base in _live(repository.path):
        found.setdefault(base, []).append(f"program {name}")
    return found


def live_bases(repo: Path) -> set[str]:
    """The bases that instances name: their directories have to stay."""
    return {base for _, base in _live(repo)}


def base_of(snapshot: Snapshot) -> str | None:
    """The base a saved program ran on (hex); None for one on its machine's own files, and for all other snapshots."""
    base: Any = snapshot.meta.get("base") if "spec" in snapshot.meta else None
    found = base.get("snapshot") if isinstance(base, dict) else None
    return str(found) if found else None


def _program(snapshot: Snapshot) -> str:
    spec: Any = snapshot.meta["spec"]
    return str(spec.get("name", "?")) if isinstance(spec, dict) else "?"


def _live(repo: Path) -> Iterator[tuple[str, str]]:
    directory = live_directory(repo)
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            with contextlib.suppress(NoInstanceError, OSError):
                record = read_record(InstancePaths(path))
                if record.base is not None:
                    yield path.name, record.base.snapshot
