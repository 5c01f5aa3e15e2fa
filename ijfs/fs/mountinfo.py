"""What /proc/self/mountinfo says about our mounts; read without ever touching a mount point, as a dead one would hang
or fail. Used by `ijfs.fs.serve` and `ijfs.fs.mountpoint`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc(5)): `device` is "major:minor", `kind` the type with subtype ("fuse.ijfs")."""

    device: str
    path: Path
    kind: str
    source: str


def mounts() -> Iterator[Mount]:
    """All mounts this process sees, in the order they were mounted."""
    for line in MOUNTINFO.read_bytes().splitlines():
        fields = line.split(b" ")
        kind, source = fields[fields.index(b"-", 6) + 1 :][:2]
        yield Mount(fields[2].decode(), Path(_unescape(fields[4])), _unescape(kind), _unescape(source))


def find_mount(path: Path) -> Mount | None:
    """The topmost mount whose mount point is `path`, or None. Symbolic links are followed up to its parent."""
    wanted = path.parent.resolve() / path.name
    found = None
    for mount in mounts():
        if mount.path == wanted:
            found = mount
    return found


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))
