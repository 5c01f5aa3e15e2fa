"""The Python packages that a saved program could import, and what of them is different when it comes back.

A program that runs has those in memory that it imported. What it imports later comes from the disk, where another
version may be by then. Recorded by keeper/save.py as a file of the snapshot, `packages` (JSON: a directory, and the
names with versions of what is installed in it), and compared by restore.py.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from ijfs_engine.errors import CorruptError

NAME = "packages"

MOST_NAMES = 5
"""Packages that a note names."""

_DIRECTORY = re.compile(r"(/\S*?/(?:site|dist)-packages)/")
_INSTALLED = re.compile(r"(.+?)-([^-]+)\.(?:dist-info|egg-info)")

Packages = dict[str, dict[str, str]]
"""By directory, as the program calls it: versions by name."""


def of_processes(pids: Sequence[int]) -> Packages:
    """What is installed in the directories that these processes map libraries from."""
    found: Packages = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
            for directory in sorted(set(_DIRECTORY.findall(maps)) - found.keys()):
                found[directory] = _installed(Path(f"/proc/{pid}/root") / directory.lstrip("/"))
    return found


def encode(packages: Packages) -> bytes:
    """The file of a snapshot."""
    return msgspec.json.encode(packages, order="deterministic")


def differences(data: bytes, outside: Callable[[str], Path]) -> Iterator[str]:
    """A sentence where packages are not as they were; `outside` says where a directory of the program is now.
    CorruptError."""
    try:
        recorded = msgspec.json.decode(data, type=Packages)
    except msgspec.DecodeError as error:
        raise CorruptError(f"the packages of the snapshot are damaged: {error}") from error
    for directory, before in recorded.items():
        changed = list(_changed(before, _installed(outside(directory))))
        if changed:
            more = f" and {len(changed) - MOST_NAMES} more" if changed[MOST_NAMES:] else ""
            names = ", ".join(changed[:MOST_NAMES]) + more
            yield (
                f"Python packages in {directory} are not those that it was saved with: {names}; what it imports from "
                "now on is of now. A base (`ijfs base import`) keeps them as they were"
            )


def _changed(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for name, version in sorted(before.items()):
        if name not in now:
            yield f"{name} {version} is gone"
        elif now[name] != version:
            yield f"{name} {version} is {now[name]}"


def _installed(directory: Path) -> dict[str, str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return {}
    return {found[1]: found[2] for name in names if (found := _INSTALLED.fullmatch(name))}
