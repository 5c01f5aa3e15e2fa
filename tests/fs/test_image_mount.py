"""The keeper's mount, on a real kernel: it shows one snapshot's images, read-only, and leaves no dead mount behind."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from ijfs.fs import mountinfo
from ijfs.fs.image_mount import image_mount
from ijfs.fs.nodes import DirectoryNode
from ijfs.fs.stored import image_directory
from ijfs_engine import Repository, UnknownNameError

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20


class Stored(NamedTuple):
    """A snapshot with images, as a keeper shows it, and what the images hold."""

    repository: Repository
    images: DirectoryNode
    wanted: dict[str, bytes]


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    wanted = {"inventory.img": b"inventory", "pages-1.img": os.urandom(3 * MIB + 17), "empty.img": b""}
    with Repository.init(tmp_path / "repo") as repository:
        with repository.begin() as writer:
            writer.add_images("images", wanted)
            snapshot = writer.commit(branch="main")
        yield Stored(repository, image_directory(repository, repository.reader(), snapshot), wanted)


def in_mount(mountpoint: Path, images: DirectoryNode, body: Callable[[Path], None]) -> None:
    """Run `body` on the mounted images, in a thread, as it is the loop that answers."""

    async def run() -> None:
        async with image_mount(mountpoint, images) as path:
            await trio.to_thread.run_sync(body, path)

    trio.run(run)


def test_a_snapshots_images_are_shown_byte_for_byte(mountpoint: Path, stored: Stored) -> None:
    def look(images: Path) -> None:
        assert {path.name: path.read_bytes() for path in images.iterdir()} == stored.wanted
        assert [path.name for path in images.parent.iterdir()] == [images.name]
        with pytest.raises(FileNotFoundError):
            (images.parent / "other").stat()

    in_mount(mountpoint, stored.images, look)


def test_nothing_can_be_changed_in_it(mountpoint: Path, stored: Stored) -> None:
    def change(images: Path) -> None:
        page = images / "pages-1.img"
        for attempt in (
            (images / "new").touch,
            (images / "new").mkdir,
            (images.parent / "new").touch,
            page.unlink,
            images.rmdir,
            lambda: page.rename(images / "moved"),
            lambda: page.open("r+b"),
            lambda: os.truncate(page, 1),
            lambda: page.chmod(0o777),
        ):
            with pytest.raises(OSError, match="Read-only file system") as refusal:
                attempt()
            assert refusal.value.errno == errno.EROFS
        with page.open("rb") as file:
            os.fsync(file.fileno())

    in_mount(mountpoint, stored.images, change)


def test_a_snapshot_without_images_has_none_to_show(stored: Stored) -> None:
    snapshot = stored.repository.snapshots()[0]
    with pytest.raises(UnknownNameError, match="no directory files"):
        image_directory(stored.repository, stored.repository.reader(), snapshot, b"files")


def test_the_mount_goes_when_its_block_fails_while_a_program_stands_in_it(mountpoint: Path, stored: Stored) -> None:
    async def run() -> None:
        async with image_mount(mountpoint, stored.images):
            await trio.to_thread.run_sync(stand_in_it)
            raise RuntimeError("the keeper failed")

    def stand_in_it() -> None:
        # Not by Popen's cwd: its vfork would hold this process until the directory answers, and it is we who answer.
        program = subprocess.Popen(
            ["sh", "-c", 'cd "$1" && echo there && exec sleep 60', "sh", mountpoint], stdout=subprocess.PIPE
        )
        programs.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == b"there\n"

    programs: list[subprocess.Popen[bytes]] = []
    try:
        with pytest.raises(RuntimeError, match="the keeper failed"):
            trio.run(run)
        assert mountinfo.find_mount(mountpoint) is None
    finally:
        for program in programs:
            program.kill()
            program.communicate()


def test_mounts_in_turn_in_one_process_all_end(mountpoint: Path, stored: Stored) -> None:
    """The kernel's own requests (a file's release) may take a thread that is asked to end."""

    def look(images: Path) -> None:
        assert (images / "inventory.img").read_bytes() == b"inventory"

    for _ in range(30):
        in_mount(mountpoint, stored.images, look)


def test_reading_ahead_is_raised_to_four_requests(mountpoint: Path, stored: Stored) -> None:
    def look(images: Path) -> None:
        found = mountinfo.find_mount(images.parent)
        assert found is not None
        assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text().strip() == "4096"

    in_mount(mountpoint, stored.images, look)
