"""Small disks that are really full: an ext4 or a tmpfs with so many bytes left."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SIZE: Final = 40 << 20


@contextlib.contextmanager
def mounted(kind: str, where: Path, size: int = SIZE) -> Iterator[Path]:
    """A filesystem of its own for the block; nothing of it is left."""
    disk = where / "disk"
    disk.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "ijfs-test", str(disk)]
    else:
        image = where / "image"
        image.touch()
        os.truncate(image, size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(disk)]
    subprocess.run(command, check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
        if kind == "ext4":
            image.unlink()


def fill(disk: Path, left: int) -> None:
    """Take up all but so many bytes, in whole blocks."""
    os.sync()
    number = 0
    while True:
        space = os.statvfs(disk)
        free = space.f_bavail * space.f_frsize
        if free <= left:
            return
        number += 1
        # Some blocks are the file's own: less at a time towards the end.
        part = (free - left) if free - left <= 64 << 10 else (free - left) * 9 // 10
        with (disk / f"filler{number}").open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, part)
        if number > 200:
            raise RuntimeError(f"{disk} cannot be filled to {left} bytes: {free} are free")


def empty(disk: Path) -> None:
    """Give the room back."""
    for file in disk.glob("filler*"):
        file.unlink()
