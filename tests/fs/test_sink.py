"""The keeper's mount, on a real kernel: what is written into it arrives in the arena byte for byte."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from ijfs.fs import mountinfo
from ijfs.fs.sink import ImageMount, image_mount
from ijfs.fs.stored import image_directory
from ijfs_engine import Repository, UnknownNameError
from ijfs_engine.write.arena import Arena

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20


def in_sink(mountpoint: Path, body: Callable[[Path], None], capacity: int = 64 * MIB) -> dict[str, bytes]:
    """Run `body` on a fresh sink's directory, in a thread as the loop serves it; what has arrived."""

    async def run() -> dict[str, bytes]:
        async with image_mount(mountpoint) as mount:
            sink = mount.new_sink(Arena(capacity))
            await trio.to_thread.run_sync(body, sink.path)
            return {name: b"".join(segments) for name, segments in sink.files.items()}

    return trio.run(run)


def test_files_arrive_byte_for_byte(mountpoint: Path) -> None:
    chance = random.Random(1)
    sizes = {"empty": 0, "byte": 1, "page": 4096, "odd": MIB + 17, "large": 9 * MIB}
    wanted = {name: chance.randbytes(size) for name, size in sizes.items()}

    def write(directory: Path) -> None:
        for name, data in wanted.items():
            (directory / name).write_bytes(data)
            assert (directory / name).read_bytes() == data

    assert in_sink(mountpoint, write) == wanted


def test_files_that_grow_in_turn_do_not_mix(mountpoint: Path) -> None:
    wanted = {str(number): os.urandom(3 * MIB + number) for number in range(3)}

    def write(directory: Path) -> None:
        files = {name: (directory / name).open("wb", buffering=0) for name in wanted}
        for at in range(0, 4 * MIB, 100_000):
            for name, file in files.items():
                file.write(wanted[name][at : at + 100_000])
        for file in files.values():
            file.close()

    assert in_sink(mountpoint, write) == wanted


def test_overwriting_holes_and_truncation_are_what_a_disk_would_hold(mountpoint: Path) -> None:
    def write(directory: Path) -> None:
        with (directory / "file").open("wb", buffering=0) as file:
            file.write(b"a" * 100_000)
            os.pwrite(file.fileno(), b"B" * 10, 50_000)
            os.pwrite(file.fileno(), b"C", 200_000)
            os.ftruncate(file.fileno(), 200_010)
            os.ftruncate(file.fileno(), 200_005)
        assert (directory / "file").stat().st_size == 200_005

    expected = bytearray(200_005)
    expected[:100_000] = b"a" * 100_000
    expected[50_000:50_010] = b"B" * 10
    expected[200_000:200_001] = b"C"
    assert in_sink(mountpoint, write)["file"] == bytes(expected)


def test_names_are_made_moved_and_removed(mountpoint: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "sub" / "kept").write_bytes(b"kept")
        (directory / "old").write_bytes(b"moved")
        (directory / "over").write_bytes(b"replaced")
        (directory / "old").rename(directory / "over")
        (directory / "gone").write_bytes(b"x")
        (directory / "gone").unlink()
        assert sorted(os.listdir(directory)) == ["over", "sub"]
        with pytest.raises(OSError, match="not empty"):
            (directory / "sub").rmdir()
        with pytest.raises(FileExistsError):
            (directory / "sub").mkdir()
        with pytest.raises(FileNotFoundError):
            (directory / "gone").stat()

    assert in_sink(mountpoint, write) == {"sub/kept": b"kept", "over": b"moved"}


def test_a_full_arena_refuses_with_enospc_and_keeps_what_was_there(mountpoint: Path) -> None:
    def write(directory: Path) -> None:
        (directory / "small").write_bytes(b"fits")
        with pytest.raises(OSError, match="No space") as refusal:
            (directory / "large").write_bytes(bytes(8 * MIB))
        assert refusal.value.errno == errno.ENOSPC

    assert in_sink(mountpoint, write, capacity=4 * MIB)["small"] == b"fits"


def test_the_kernel_asks_for_xattrs_once_and_then_no_more(mountpoint: Path) -> None:
    def ask(directory: Path) -> None:
        (directory / "file").write_bytes(b"")
        for _ in range(2):
            with pytest.raises(OSError, match="not supported"):
                os.getxattr(directory / "file", "security.capability")

    in_sink(mountpoint, ask)


def test_a_closed_sink_is_out_of_sight_and_its_files_stay_readable(mountpoint: Path) -> None:
    async def run() -> None:
        async with image_mount(mountpoint) as mount:
            sink = mount.new_sink(Arena(MIB))
            await trio.to_thread.run_sync((sink.path / "file").write_bytes, b"bytes")
            files = sink.files
            sink.close()
            assert await trio.to_thread.run_sync(os.listdir, mountpoint) == []
            assert bytes(files["file"][0]) == b"bytes"
            again = mount.new_sink(Arena(MIB))
            assert again.path != sink.path

    trio.run(run)


def test_the_mount_goes_when_its_block_fails_while_a_program_stands_in_it(mountpoint: Path) -> None:
    async def run() -> None:
        async with image_mount(mountpoint):
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


def test_many_threads_write_at_once(mountpoint: Path) -> None:
    wanted = {f"thread-{number}": os.urandom(2 * MIB) for number in range(6)}

    def write(directory: Path) -> None:
        threads = [
            threading.Thread(target=(directory / name).write_bytes, args=(data,)) for name, data in wanted.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert in_sink(mountpoint, write) == wanted


def test_two_mounts_in_turn_in_one_process(mountpoint: Path) -> None:
    for text in (b"first", b"second"):
        assert in_sink(mountpoint, lambda directory, text=text: (directory / "file").write_bytes(text)) == {
            "file": text
        }


def test_reading_ahead_is_raised_to_one_mebibyte(mountpoint: Path) -> None:
    async def run() -> str:
        async with image_mount(mountpoint) as mount:
            return read_ahead(mount)

    def read_ahead(mount: ImageMount) -> str:
        found = mountinfo.find_mount(mount.path)
        assert found is not None
        return Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text().strip()

    assert trio.run(run) == "1024"


def test_a_snapshots_images_and_a_sink_share_the_mount(mountpoint: Path, tmp_path: Path) -> None:
    wanted = {"inventory.img": b"inventory", "pages-1.img": os.urandom(3 * MIB)}

    def look(images: Path, sink: Path) -> None:
        assert {path.name: path.read_bytes() for path in images.iterdir()} == wanted
        with pytest.raises(OSError, match="Read-only file system"):
            (images / "new").touch()
        with pytest.raises(OSError, match="Read-only file system"):
            (sink / "file").rename(images / "file")

    async def run(repository: Repository) -> None:
        snapshot = repository.snapshots()[0]
        async with image_mount(mountpoint) as mount:
            sink = mount.new_sink(Arena(MIB))
            await trio.to_thread.run_sync((sink.path / "file").write_bytes, b"dumped")
            images = mount.serve_images(image_directory(repository, repository.reader(), snapshot))
            await trio.to_thread.run_sync(look, images, sink.path)
            mount.withdraw_images()
            assert await trio.to_thread.run_sync(os.listdir, mountpoint) == [sink.path.name]
            with pytest.raises(UnknownNameError, match="no directory files"):
                image_directory(repository, repository.reader(), snapshot, b"files")

    with Repository.init(tmp_path / "repo") as repository:
        with repository.begin() as writer:
            writer.add_images("images", wanted)
            writer.commit(branch="main")
        trio.run(run, repository)
