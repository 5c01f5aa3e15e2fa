"""A directory with one of everything, and repositories made of it, for the tests of the mount."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

from ijfs_engine import Repository, Snapshot

MANY = 10_000
UNDECODABLE = os.fsdecode(b"caf\xe9 \xff")


def make_tree(at: Path) -> Path:
    """Files of odd sizes and modes, links of both kinds, special files, names that are not UTF-8, old times."""
    chance = random.Random(7)
    at.mkdir()
    for name, size in {"empty": 0, "byte": 1, "page": 4096, "large": (5 << 20) + 7}.items():
        (at / name).write_bytes(chance.randbytes(size))
    (at / "text").write_text("one line\n" * 50_000)
    (at / "setuid").write_bytes(b"#!/bin/true\n")
    (at / "setuid").chmod(0o4755)
    (at / "unreadable").write_bytes(b"secret")
    (at / "unreadable").chmod(0)
    with (at / "sparse").open("wb") as sparse:
        sparse.truncate(3 << 20)
        sparse.seek(1 << 20)
        sparse.write(b"island")
    (at / UNDECODABLE).write_bytes(b"name")
    os.setxattr(at / "text", "user.colour", b"blue\0green")
    deep = at / "deep" / "er" / ("long" * 50)
    deep.mkdir(parents=True)
    os.link(at / "large", deep / "hard link")
    (deep / "soft link").symlink_to("../../../text")
    (at / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(at / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(at / "socket"))
    if os.geteuid() == 0:
        os.mknod(at / "null", 0o020666, os.makedev(1, 3))
        os.chown(at / "byte", 1234, 5678)
    (at / "many").mkdir()
    for number in range(MANY):
        (at / "many" / f"{number:05d}").touch()
    os.utime(at / "page", ns=(0, 1_234_567_890_123_456_789))
    os.utime(at / "deep", ns=(0, -86_400 * 10**9))
    return at


def save(repository: Repository, directory: Path, *, at: str = "files", branch: str = "main") -> Snapshot:
    """A snapshot of a directory, on a branch."""
    head = repository.refs.branches().get(branch)
    with repository.begin([head] if head else []) as writer:
        writer.add_directory(at, directory)
        return writer.commit(message=f"{at} of {directory.name}", branch=branch)
