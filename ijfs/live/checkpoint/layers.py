"""The writable layers of a program: where what it wrote is on this machine, and where in a snapshot's tree.

Called by workspace.py and whoever looks at a program's files: lifecycle.py, ended_files.py, restore.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ijfs.live.model.paths import SandboxPaths
from ijfs.live.model.records import Volume
from ijfs.live.sandbox import host_folders, rootfs
from ijfs.live.sandbox.sandbox import Sandbox
from ijfs_engine import FoundOnDisk, walk_directory

COMPARED = 1 << 20
"""Bytes of a file that are compared at a time."""


class WritableLayer(NamedTuple):
    """A writable directory outside, its place in the snapshot's tree, and where the program sees it."""

    outside: Path
    at: str
    inside: str
    without: frozenset[str] = frozenset()
    """Paths in it that no snapshot has. Where there are only those at its top, the layer is left out."""
    numbered: bool = False
    """Whether it is on a disk of its own, so that a restored file can have the inode number that it had."""
    shared: bool = False
    """A folder of the host, which others change also while the program stands still."""

    def place_inside(self, at: str) -> str:
        """Where the program sees what is at a path of the snapshot's tree."""
        return self.inside + at[len(self.at) :]


def layers_of(
    upper: Path, volumes: Sequence[tuple[Volume, Path]], shm: Path | None, *, numbered: bool = False
) -> list[WritableLayer]:
    """The root's writable layer, then the volumes' (they lie at empty directories of it), then /dev/shm."""
    found = [WritableLayer(upper, "files", "", numbered=numbered)]
    found += [
        WritableLayer(path, f"files{volume.path}", volume.path, numbered=numbered)
        for volume, path in volumes
        if volume.is_layer
    ]
    if shm is not None:
        found.append(WritableLayer(shm, "shm", "/dev/shm"))
    return found


def writable_layers(sandbox: Sandbox) -> list[WritableLayer]:
    """The writable layers of a sandbox whose program runs."""
    root = Path(f"/proc/{sandbox.pid}/root")
    dev = root / "dev"
    volumes = upper_directories(sandbox.paths, sandbox.volumes)
    layers = layers_of(sandbox.paths.upper, volumes, dev / "shm", numbered=sandbox.paths.image.exists())
    shared = shared_layers(sandbox.paths, sandbox.volumes, root)
    return [*layers, *shared, WritableLayer(dev, "dev", "/dev", own_devices(dev))]


def shared_layers(paths: SandboxPaths, volumes: Sequence[Volume], root: Path) -> Iterator[WritableLayer]:
    """Folders of the host that a save keeps, as the program has them: whatever they are called outside by now."""
    for volume in volumes:
        if volume.kind == "shared":
            without = host_folders.left_out(volume, volumes, paths.repository)
            outside = root / volume.path.lstrip("/")
            yield WritableLayer(outside, f"files{volume.path}", volume.path, without, shared=True)


def own_devices(dev: Path) -> frozenset[str]:
    """What a sandbox's /dev holds of itself: made anew by each restore, with the numbers of its machine."""
    nvidia = [name for name in os.listdir(dev) if name.startswith("nvidia")]
    return frozenset((*rootfs.DEVICES, *rootfs.LINKS, *rootfs.OTHER_NAMES, *nvidia))


def upper_directories(paths: SandboxPaths, volumes: Sequence[Volume]) -> list[tuple[Volume, Path]]:
    """Each volume with the directory that holds what was written to it."""
    return [(volume, paths.volume(volume.key).upper) for volume in volumes]


def walk(layer: WritableLayer, *, running: bool = False) -> Iterator[tuple[str, FoundOnDisk]]:
    """Each thing in the layer, its root too, with its path in the snapshot's tree. While the program is `running`, or
    where it is shared, what is removed meanwhile is left out."""
    top = os.open(layer.outside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if layer.without and not layer.shared and layer.without.issuperset(os.listdir(top)):
            return
        without = frozenset(map(os.fsencode, layer.without))
        path = os.fsencode(layer.outside)
        above: tuple[bytes, ...] | None = None
        prefix = ""
        changing = running or layer.shared
        for found in walk_directory(top, leave_out=without, one_filesystem=True, changing=changing, path=path):
            if found.above is not above:
                above = found.above
                prefix = os.fsdecode(b"/".join((os.fsencode(layer.at), *above, b"")))
            yield (prefix + os.fsdecode(found.name) if found.name else layer.at), found
    finally:
        os.close(top)


def has_bytes(found: FoundOnDisk, read: Callable[[int, int], bytes]) -> bool:
    """Whether a regular file has these bytes. Neither size nor times say so: a write through a mapping may change none
    of them, and a program may put them back. OSError."""
    fd = os.open(found.at, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=found.directory)
    with open(fd, "rb", buffering=0) as file:
        for offset in range(0, found.status.st_size, COMPARED):
            if os.pread(file.fileno(), COMPARED, offset) != read(offset, COMPARED):
                return False
    return True
