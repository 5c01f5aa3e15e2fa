"""Where `bench.mount_reads` reads from: a plain directory, a mount of a repository, squashfuse (zstd), a cold ext4."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ijfs.fs import mountpoint as mounting
from ijfs_engine import Repository

SMALL_FILES = 100_000
_PER_DIRECTORY = 200
_WORDS = 3000
_ROOM = 1 << 30


def make_small_files(tree: Path, count: int) -> None:
    """Text files of 200 to 2,400 bytes, 200 to a directory."""
    rng = random.Random(4)
    words = [b"word%d " % number for number in range(_WORDS)]
    for number in range(count):
        directory = tree / f"d{number // _PER_DIRECTORY:04}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number:06}").write_bytes(b"".join(rng.choices(words, k=rng.randrange(25, 290))))


def make_repository(path: Path, images: Path, tree: Path) -> None:
    """Both in one snapshot."""
    with Repository.init(path) as opened, opened.begin() as writer:
        writer.add_images("images", {image.name: image for image in images.iterdir()})
        writer.add_directory("files", tree)
        writer.commit(branch="main")


@contextmanager
def mounted(repository: Path) -> Iterator[Path]:
    """A fresh mount; where the snapshot is in it."""
    with tempfile.TemporaryDirectory() as place:
        mounting.mount(repository, Path(place))
        try:
            yield Path(place) / "branches" / "main"
        finally:
            mounting.umount(Path(place))


def processor_s(place: Path) -> float:
    """Seconds of processor time of whoever serves the mount that a path is in; 0 where the kernel does."""
    mount = next((path for path in (place, *place.parents) if path.is_mount()), place)
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(mount) in words and mount != Path("/"):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def why_no_squashfuse() -> str | None:
    """What is missing for it, in words."""
    missing = [name for name in ("mksquashfs", "squashfuse_ll") if shutil.which(name) is None]
    return f"squashfuse was left out: no {', no '.join(missing)} here" if missing else None


def make_squash(image: Path, images: Path, tree: Path) -> None:
    """Both as images/ and files/ of one squashfs, zstd as mksquashfs has it."""
    command = ["mksquashfs", os.fspath(images), os.fspath(tree), os.fspath(image), "-comp", "zstd"]
    subprocess.run([*command, "-quiet", "-no-progress"], check=True)


@contextmanager
def squashfuse(image: Path) -> Iterator[Path]:
    """A fresh mount of it."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["squashfuse_ll", os.fspath(image), place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["fusermount3", "-u", place], check=True)


def make_ext4(image: Path, tree: Path) -> None:
    """The tree in an ext4 of its own."""
    with image.open("wb") as file:
        file.truncate(_ROOM)
    command = ["mkfs.ext4", "-q", "-F", "-N", f"{2 * SMALL_FILES}", "-E", "lazy_itable_init=0", os.fspath(image)]
    subprocess.run(command, check=True)
    with cold_ext4(image) as place:
        subprocess.run(["cp", "-a", f"{tree}/.", os.fspath(place)], check=True)


@contextmanager
def cold_ext4(image: Path) -> Iterator[Path]:
    """It, just mounted, past the page cache of the file that it is in: nothing of it is in memory."""
    made = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", os.fspath(image)], check=True, capture_output=True, text=True
    )
    device = made.stdout.strip()
    try:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["mount", device, place], check=True)
            try:
                yield Path(place)
            finally:
                subprocess.run(["umount", place], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
