"""A disk of an instance's own for its writable layers: an ext4 image, a sparse file, mounted by a loop device.

It is of a size, which the program is told by ENOSPC. And its inode numbers are nobody else's, so that a restored file
can have the number that it had: SQLite, inotify and git look at it. ext4 gives a new file the number that
/sys/fs/ext4/DEVICE/inode_goal names, if that is free.

A keeper mounts it in its own mount namespace; a client that looks at the files of an instance makes a mount that is
nowhere in the tree and goes with its descriptor. The loop device goes with the last mount. Two loop devices of one file
would destroy it: who attaches it holds a lock on the file, and looks first whether it is attached already.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ijfs.live.errors import SandboxError
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.process import syscalls
from ijfs.live.sandbox import namespaces as ns

SMALLEST = 64 << 20
"""A smaller ext4 is half journal and tables."""

# <linux/loop.h>
_LOOP_GET_STATUS64, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C05, 0x4C0A, 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
_INFO = struct.Struct("<QQQQQIIII64s64s32s2Q")
_CONFIG = struct.Struct("<II232s8Q")
_LOOP_MAJOR = 7

# More directories than a sandbox has for itself.
_OWN = 2048

# How often a free loop device is asked for: another process may take it first.
_TRIES = 50

# <linux/mount.h>
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_STRING, _CREATE = 1, 6

# One inode for 16 KiB, as mke2fs has it: 4 million for 64 GiB, whose tables are not written before they are needed.
_MKFS = (
    *("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-i", "16384", "-J", "size=16"),
    *("-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"),
)

# With it an fsync writes one block of the journal, and no commit of all that there is: 1.5 times as long as on a plain
# file, where it was three to five times. An older mke2fs does not know it, and its disks are slower.
_FAST_COMMIT = ("-O", "fast_commit")


def make(paths: SandboxPaths, size: int) -> None:
    """Make an image of so many bytes and mount it where the sandbox's layers go. SandboxError; nothing is left then."""
    try:
        _make_image(paths.image, size)
        mount(paths)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(paths.image)
        if isinstance(error, OSError):
            raise SandboxError(f"the disk cannot be made: {error.strerror}", hint=_HINT) from error
        raise


def trial(directory: Path) -> str:
    """Whether a disk can be had in an empty directory, and files keep their numbers on it: "" or why not."""
    image = directory / "disk.ext4"
    try:
        _make_image(image, SMALLEST)
        fd = open_image(image)
        try:
            kept = os.access(_goal_of(Path(f"/proc/self/fd/{fd}")), os.W_OK)
        finally:
            os.close(fd)
    except (OSError, SandboxError) as error:
        return str(error)
    finally:
        image.unlink(missing_ok=True)
    return "" if kept else "/sys/fs/ext4 cannot be written to: files get other inode numbers in a restored program"


def _make_image(image: Path, size: int) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, max(size, SMALLEST))
    finally:
        os.close(fd)
    done = _formatted(image, _FAST_COMMIT)
    if done.returncode != 0:
        done = _formatted(image)
    if done.returncode != 0:
        raise SandboxError(f"the disk cannot be made: {done.stderr.strip() or 'mkfs.ext4 failed'}", hint=_HINT)


def _formatted(image: Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_MKFS, *options, image], capture_output=True, text=True, check=False)


def last_numbers(paths: SandboxPaths) -> int:
    """Where those inode numbers begin that only the sandbox's own directories have: no file is put back there."""
    return max(os.statvfs(paths.layers).f_files - _OWN, 12)


def mount(paths: SandboxPaths) -> None:
    """Mount an image that is there, in the calling process's mount namespace. OSError."""
    paths.layers.mkdir(exist_ok=True)
    with _attached(paths.image) as device:
        ns.mount(device, paths.layers, "ext4")


@contextlib.contextmanager
def opened(paths: SandboxPaths) -> Iterator[Path]:
    """The directory of a sandbox's layers for a process that is not its keeper. What is opened in it stays usable."""
    if not paths.image.exists():
        yield paths.layers
        return
    fd = open_image(paths.image)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def open_image(image: Path) -> int:
    """A descriptor of an image's root directory, in a mount that is nowhere and goes with the descriptor. OSError."""
    with _attached(image) as device:
        context = ns.syscall(syscalls.number("fsopen"), _address(b"ext4"), _FSOPEN_CLOEXEC)
        try:
            _configure(context, _SET_STRING, b"source", device.encode())
            _configure(context, _CREATE, None, None)
            return ns.syscall(syscalls.number("fsmount"), context, _FSMOUNT_CLOEXEC, 0)
        finally:
            os.close(context)


def keep_log(paths: SandboxPaths) -> None:
    """Leave what the program wrote where it can be read without the disk."""
    with contextlib.suppress(OSError):
        shutil.copyfile(paths.program_log, paths.kept_log)


def keeps_numbers(paths: SandboxPaths) -> bool:
    """Whether files that are put back there have the inode numbers that they are to have."""
    return paths.image.exists() and os.access(_goal_of(paths.layers), os.W_OK)


@contextlib.contextmanager
def inode_goal(paths: SandboxPaths) -> Iterator[int]:
    """A file into which the inode number goes that the next new file of a mounted disk gets (0: as the kernel likes,
    which is so at the end); -1 where numbers are not kept."""
    if not keeps_numbers(paths):
        yield -1
        return
    fd = os.open(_goal_of(paths.layers), os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"0", 0)
        os.close(fd)


def _goal_of(layers: Path) -> Path:
    device = os.stat(layers).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    return Path(f"/sys/fs/ext4/{name}/inode_goal")


@contextlib.contextmanager
def _attached(image: Path) -> Iterator[str]:
    """The block device of an image, which stays for as long as something has it mounted. OSError."""
    lock = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fd, device = _found(lock) or _new(image)
        try:
            yield device
        finally:
            os.close(fd)
    finally:
        os.close(lock)


def _found(image: int) -> tuple[int, str] | None:
    """The loop device that has this file already."""
    wanted = os.fstat(image)
    for entry in Path("/sys/block").glob("loop*/loop"):
        name = entry.parent.name
        with contextlib.suppress(OSError), contextlib.ExitStack() as unless_it_is:
            fd = _open_device(int(name.removeprefix("loop")))
            unless_it_is.callback(os.close, fd)
            found = _INFO.unpack(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size)))
            if (found[0], found[1]) == (wanted.st_dev, wanted.st_ino):
                unless_it_is.pop_all()
                return fd, f"/dev/{name}"
    return None


def _new(image: Path) -> tuple[int, str]:
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)  # not the one that is locked: the device would hold the lock
    try:
        return _configured(backing, os.fsencode(image)[-63:])
    finally:
        os.close(backing)


def _configured(backing: int, name: bytes) -> tuple[int, str]:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR, name, b"", b"", 0, 0)
    config = _CONFIG.pack(backing, 4096, info, *([0] * 8))
    for _ in range(_TRIES):
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        finally:
            os.close(control)
        fd = _open_device(number)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
            return fd, f"/dev/loop{number}"
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EBUSY:
                raise
    raise OSError(errno.EBUSY, "no free loop device")


def _open_device(number: int) -> int:
    """A container's /dev may lack the nodes of devices that were made after it."""
    path = f"/dev/loop{number}"
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.mknod(path, 0o060600, os.makedev(_LOOP_MAJOR, number))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    ns.syscall(syscalls.number("fsconfig"), context, command, _address(key), _address(value), 0)


def _address(text: bytes | None) -> int:
    return ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value or 0


_HINT = "a disk of its own needs loop devices and mkfs.ext4 (package `e2fsprogs`); without `--disk` it needs neither"
