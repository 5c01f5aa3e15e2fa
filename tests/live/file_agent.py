"""Operations on files, done in a directory and told of: inside a sandbox as a program, outside as the model.

A program of files_machine.py: it takes requests from /dev/shm, so that nothing of it leads out of its sandbox.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

MAPPED = 8192
SLOTS = 3


class Agent:
    """What works in one directory. Paths are relative to it; files that it has open have numbers."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        self._top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._directory = directory
        self._open: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}

    def do(self, name: str, arguments: list[Any]) -> str:
        """One operation; "" or the name of its error."""
        try:
            getattr(self, f"do_{name}")(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return ""

    def close(self) -> None:
        """Let go of everything."""
        for slot in range(SLOTS):
            self.do_close(slot)
            self.do_unmap(slot)
        os.close(self._top)

    def at(self, path: str) -> str:
        return f"/proc/self/fd/{self._top}/{path}"

    # -- operations on names

    def do_write(self, path: str, offset: int, size: int, seed: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=self._top)
        try:
            os.pwrite(fd, noise(size, seed), offset)
        finally:
            os.close(fd)

    def do_truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def do_unlink(self, path: str) -> None:
        os.unlink(path, dir_fd=self._top)

    def do_rename(self, path: str, to: str) -> None:
        os.rename(path, to, src_dir_fd=self._top, dst_dir_fd=self._top)

    def do_link(self, path: str, to: str) -> None:
        os.link(path, to, src_dir_fd=self._top, dst_dir_fd=self._top, follow_symlinks=False)

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, path, dir_fd=self._top)

    def do_mkdir(self, path: str) -> None:
        os.mkdir(path, dir_fd=self._top)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(path, dir_fd=self._top)

    def do_chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode, dir_fd=self._top)

    def do_setxattr(self, path: str, seed: int) -> None:
        os.setxattr(self.at(path), "user.seed", noise(20, seed))

    def do_utime(self, path: str, second: int) -> None:
        os.utime(path, (second, second), dir_fd=self._top)

    # -- operations on what is open

    def do_open(self, slot: int, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self._top)
        self.do_close(slot)
        self._open[slot] = fd

    def do_close(self, slot: int) -> None:
        if slot in self._open:
            os.close(self._open.pop(slot))

    def do_go_on(self, slot: int, size: int, seed: int) -> None:
        if slot in self._open:
            os.write(self._open[slot], noise(size, seed))

    def do_map(self, slot: int, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self._top)
        try:
            os.truncate(fd, max(os.fstat(fd).st_size, MAPPED))
            self.do_unmap(slot)
            self._maps[slot] = mmap.mmap(fd, MAPPED)
        finally:
            os.close(fd)

    def do_unmap(self, slot: int) -> None:
        if slot in self._maps:
            self._maps.pop(slot).close()

    # -- what is there

    def look(self) -> dict[str, Any]:
        """Everything in the directory, and what is open: one by name, kind, mode, size, links, bytes, attributes."""
        found: dict[str, Any] = {}
        numbers: dict[int, int] = {}
        for directory, below, files in os.walk(self._directory):
            below.sort()
            for name in sorted([*below, *files]):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                same = numbers.setdefault(status.st_ino, len(numbers))
                found[os.path.relpath(path, self._directory)] = [same, *self._one(path, status)]
        for slot, fd in sorted(self._open.items()):
            found[f"open {slot}"] = [os.lseek(fd, 0, os.SEEK_CUR), os.fstat(fd).st_nlink, digest(fd)]
        return found

    def _one(self, path: str, status: os.stat_result) -> list[Any]:
        kind = stat.S_IFMT(status.st_mode)
        is_file = kind == stat.S_IFREG
        seed = ""
        with contextlib.suppress(OSError):
            seed = os.getxattr(path, "user.seed", follow_symlinks=False).hex()
        content = os.readlink(path) if kind == stat.S_IFLNK else ""
        if is_file:
            fd = os.open(path, os.O_RDONLY)
            content = digest(fd)
            os.close(fd)
        size, links = (status.st_size, status.st_nlink) if is_file else (0, 0)
        return [kind, stat.S_IMODE(status.st_mode), size, links, content, seed, status.st_mtime_ns if is_file else 0]

    def do_poke(self, slot: int, at: int, byte: int) -> None:
        if slot in self._maps and at % MAPPED < self._maps[slot].size():  # the file may be shorter by now: SIGBUS
            self._maps[slot][at % MAPPED] = byte


def noise(size: int, seed: int) -> bytes:
    """Bytes by a number."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(size)


def digest(fd: int) -> str:
    """What an open file holds, its position untouched."""
    left, hashed = os.fstat(fd).st_size, hashlib.blake2b(digest_size=12)
    at = 0
    while at < left:
        piece = os.pread(fd, 1 << 20, at)
        at += len(piece)
        hashed.update(piece)
    return hashed.hexdigest()


def answer(agent: Agent, request: list[Any]) -> Any:
    """What a request gets: the errors of its operations, in order, and what is there then."""
    return [[agent.do(name, arguments) for name, arguments in request], agent.look()]


def serve(directory: str, mailbox: Path) -> None:
    """Answer requests for ever."""
    agent = Agent(directory)
    (mailbox / "ready").touch()
    while True:
        try:
            number, request = json.loads((mailbox / "request").read_text())
        except FileNotFoundError:
            time.sleep(0.002)
            continue
        os.remove(mailbox / "request")
        (mailbox / "new").write_text(json.dumps([number, *answer(agent, request)]))
        os.rename(mailbox / "new", mailbox / "answer")


if __name__ == "__main__":
    serve(sys.argv[1], Path("/dev/shm"))
