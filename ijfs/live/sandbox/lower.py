"""What a sandbox's overlay stands on: this machine's root, or a base; and finding things in there as a program would.

Made by the keeper (bases/hold.py makes those of a base), used by sandbox.py and checkpoint/restore.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ijfs.live.model.records import Base

# As many links as the kernel follows before it gives up.
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class Lower:
    """The files below a sandbox's writable layer.

    `base` is None where they are this machine's own. `fd` keeps a base's directory from being swept for as long as it
    is open. `fresh` puts into a new writable layer what changed since the base was imported.
    """

    root: Path = Path("/")
    base: Base | None = None
    fd: int = -1
    fresh: Callable[[Path], None] | None = None


HOST = Lower()


def inside(root: Path, path: str) -> Path | None:
    """Where a path of a program on that root is for us, links followed as they would be there; None if nowhere."""
    if root == Path("/"):
        return Path(path) if os.path.exists(path) else None
    pending = _parts(path)
    here: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == "..":
            here = here[:-1]
            continue
        at = root.joinpath(*here, part)
        if at.is_symlink():
            links += 1
            if links > _MOST_LINKS:
                return None
            target = os.readlink(at)
            here = [] if target.startswith("/") else here
            pending = _parts(target) + pending
        elif at.exists():
            here.append(part)
        else:
            return None
    return root.joinpath(*here)


def program_inside(root: Path, program: str, cwd: str, environment: Mapping[str, str]) -> str | None:
    """The path, as the program's own root has it, of what a shell there would run by that name."""
    if root == Path("/"):
        found = shutil.which(program, path=environment.get("PATH"))
        local = os.path.join(cwd, program)
        return found or (local if "/" in program and os.access(local, os.X_OK) else None)
    for candidate in _candidates(program, cwd, environment.get("PATH", os.defpath)):
        at = inside(root, candidate)
        if at is not None and at.is_file() and os.access(at, os.X_OK):
            return candidate
    return None


def _candidates(program: str, cwd: str, path: str) -> Iterator[str]:
    if "/" in program:
        yield os.path.join(cwd, program)
        return
    yield from (os.path.join(directory or cwd, program) for directory in path.split(os.pathsep))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
