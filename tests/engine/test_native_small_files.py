"""Many new files in one call (_native/small_files.pyx): they are as was asked, and what is wrong is named."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijfs_engine import InodeNumbers, Repository, export_tree, import_directory
from ijfs_engine._native.small_files import write_files

Row = tuple[bytes, bytes, int, int, int, int, int]


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def write(directory: Path, *rows: Row, owners: bool = False) -> None:
    with opened(directory) as fd:
        write_files(fd, rows, owners)


def row(name: bytes, data: bytes = b"", mode: int = 0o644, mtime_ns: int = 1) -> Row:
    return name, data, mode, os.geteuid(), os.getegid(), mtime_ns, 0


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_bytes_mode_and_times_are_as_asked_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    rows = [
        row(b"empty", mode=0o600, mtime_ns=-1),
        row(b"\xff", b"x" * 70_000, 0o777, 10**18 + 123),
        row(b"setgid", b"y", 0o2751, 5),
        row(b"none", b"z", 0),
    ]
    before = os.umask(umask)
    try:
        write(tmp_path, *rows)
    finally:
        os.umask(before)
    for name, data, mode, uid, gid, mtime_ns, _ in rows:
        path = os.fsencode(tmp_path) + b"/" + name
        status = os.stat(path)
        assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_atime_ns) == (mode, mtime_ns, mtime_ns)
        assert (status.st_uid, status.st_gid, status.st_size) == (uid, gid, len(data))
        os.chmod(path, 0o600)
        assert Path(os.fsdecode(path)).read_bytes() == data


@pytest.mark.root
def test_owners_are_given_and_bits_of_the_mode_stay(tmp_path: Path) -> None:
    write(tmp_path, (b"theirs", b"1", 0o6755, 1234, 4321, 7, 0), owners=True)
    write(tmp_path, (b"mine", b"1", 0o755, 1234, 4321, 7, 0), owners=False)
    theirs, mine = (tmp_path / "theirs").stat(), (tmp_path / "mine").stat()
    assert (theirs.st_uid, theirs.st_gid, theirs.st_mode & 0o7777) == (1234, 4321, 0o6755)
    assert (mine.st_uid, mine.st_gid) == (os.geteuid(), os.getegid())


def test_what_is_there_already_stays_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "second").symlink_to("elsewhere")
    with pytest.raises(FileExistsError) as caught:
        write(tmp_path, row(b"first", b"1"), row(b"second", b"2"), row(b"third", b"3"))
    assert caught.value.filename == b"second"
    assert caught.value.errno == errno.EEXIST
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [b"a/b", b"nul\0", b"../up"])
def test_a_name_that_leads_elsewhere_makes_nothing(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        write(tmp_path, row(b"before"), row(name))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("numbers", [(1 << 32, 0, 0, 0), (0o644, -1, 0, 0), (0o644, 0, 0, 1 << 100)])
def test_numbers_that_no_file_has_make_nothing(tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(OverflowError):
        write(tmp_path, (b"f", b"", *numbers, 0))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "error"), [(b"", FileNotFoundError), (b".", OSError), (b"..", OSError)])
def test_names_of_a_directory_are_refused_by_the_system(tmp_path: Path, name: bytes, error: type[OSError]) -> None:
    with pytest.raises(error) as caught:
        write(tmp_path, row(name))
    assert caught.value.filename == name


def test_the_filesystem_is_told_each_number_before_its_file_is_made(tmp_path: Path) -> None:
    """A file stands for the kernel's; that files get these numbers, tests/live/test_disk.py shows."""
    goal = os.open(tmp_path / "goal", os.O_RDWR | os.O_CREAT)
    try:
        rows = [(*row(b"first")[:-1], 12), (*row(b"second")[:-1], 4_000_000_123)]
        with opened(tmp_path) as fd:
            write_files(fd, rows, False, goal)
        assert os.pread(goal, 100, 0) == b"4000000123"
        with opened(tmp_path) as fd, pytest.raises(OSError, match="Bad file descriptor"):
            write_files(fd, [row(b"third")], False, 1 << 20)
    finally:
        os.close(goal)
    assert sorted(os.listdir(tmp_path)) == ["first", "goal", "second"]


def test_small_and_large_files_with_numbers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Small ones are made by the threads that also copy the large ones, and the numbers are one thread's at a time."""
    source, goal = tmp_path / "source", os.open(tmp_path / "goal", os.O_RDWR | os.O_CREAT)
    for number in range(40):
        (source / f"{number}").mkdir(parents=True)
        for small in range(10):
            (source / f"{number}/{small}").write_text(f"{number} {small}")
        for large in range(3):
            with (source / f"{number}/large{large}").open("wb") as file:
                file.truncate(20 << 20)
    asked: list[bytes] = []

    def of(path: bytes) -> int:
        asked.append(path)
        return 0

    Repository.init(tmp_path / "repo").close()
    try:
        with Repository.open(tmp_path / "repo") as repository:
            reader = repository.reader()
            files = reader.lookup(import_directory(repository, source).root, "files")
            made = export_tree(reader, files.content, tmp_path / "out", numbers=InodeNumbers(goal, of), unseen=True)
    finally:
        os.close(goal)
    assert made.files == 40 * 13
    assert len(asked) == len(set(asked)) == 40 * 14, "each is asked for once"
    assert (tmp_path / "out/39/9").read_text() == "39 9"
