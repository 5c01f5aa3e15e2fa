"""The mount a keeper has for itself during an eager restore: a snapshot's images, for CRIU to read the memory.

`ijfs.live.keeper.lifecycle` runs it inside its trio loop:

    async with image_mount(mountpoint, image_directory(repository, reader, snapshot)) as images:
        …                                                      # criu restore reads images / "pages-1.img"

CRIU then reads a pages file once, straight out of the packs, and nothing holds a second copy of it.

Threads of the keeper serve it. In no thread may a `subprocess` have its `cwd` in the mount: until its child has changed
there, vfork keeps the interpreter from everyone, also from those who are to answer.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ijfs.fs.nodes import Attributes, DirectoryNode, Node, no_entry
from ijfs.fs.operations import NodeOperations
from ijfs.fs.serve import mounted
from ijfs.fs.wire import ROOT

IMAGES = b"images"


@asynccontextmanager
async def image_mount(mountpoint: Path, images: DirectoryNode) -> AsyncIterator[Path]:
    """Show `images` (`ijfs.fs.stored.image_directory`), until the block ends; where they are.

    `mountpoint` is an existing empty directory. StorageError where the kernel refuses. A keeper that is killed takes
    the mount along, because it has a mount namespace of its own; elsewhere a dead mount would be left.
    """
    parent = mountpoint.parent
    operations = NodeOperations(_Root(images), statfs=lambda: os.statvfs(parent), opens=True)
    async with mounted(operations, mountpoint, source="ijfs-keeper", auto_unmount=False):
        yield mountpoint / os.fsdecode(IMAGES)


class _Root(DirectoryNode):
    """The mount's root: one name, for the images. They keep the number they have in a mounted repository, which is
    never that of a root."""

    def __init__(self, images: DirectoryNode) -> None:
        self.ino = ROOT
        self._images = images
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        return Attributes(
            ino=self.ino, mode=stat.S_IFDIR | 0o700, uid=os.getuid(), gid=os.getgid(), mtime_ns=self._made_ns
        )

    def lookup(self, name: bytes) -> Node:
        if name != IMAGES:
            raise no_entry(name)
        return self._images

    def names(self) -> Sequence[bytes]:
        return [IMAGES]
