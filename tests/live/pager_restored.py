"""A program to dump and restore: python pager_restored.py DIR MEBIBYTES [CHILDREN].

Each process of its tree evaluates what it finds in DIR/<index>.ask and writes the value to DIR/<index>.answer (files,
because no connection may be open across a dump). `memory` is a mapping whose every mebibyte differs, `objects` a heap
of small objects; `bad()` compares both with what they were made from.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
import time
from pathlib import Path

MIB = 1 << 20


def content(index: int, at: int) -> bytes:
    return random.Random(index * 100003 + at).randbytes(MIB)


class World:
    """One process's memory."""

    def __init__(self, index: int, mebibytes: int) -> None:
        self.index = index
        self.mebibytes = mebibytes
        self.memory = mmap.mmap(-1, mebibytes * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(mebibytes):
            self.memory[at * MIB : (at + 1) * MIB] = content(index, at)
        self.objects = [str(n) * 3 for n in range(100_000)]

    def bad(self) -> list[object]:
        """What is not as it was; empty when all is well."""
        found: list[object] = [
            at for at in range(self.mebibytes) if self.memory[at * MIB : (at + 1) * MIB] != content(self.index, at)
        ]
        if self.objects != [str(n) * 3 for n in range(100_000)]:
            found.append("objects")
        return found

    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def touch(self, first: int, end: int) -> int:
        """The sum of one byte of every page of these mebibytes."""
        return sum(self.memory[first * MIB : end * MIB : 4096])

    def in_child(self, expression: str) -> int:
        """The exit status of a forked child: 0 if the expression is true in it."""
        child = os.fork()
        if child == 0:
            os._exit(0 if eval(expression) else 1)
        return os.waitpid(child, 0)[1]


def serve(where: Path, index: int, world: World) -> None:
    ask, answer = where / f"{index}.ask", where / f"{index}.answer"
    (where / f"{index}.ready").touch()
    while True:
        if ask.exists():
            question = ask.read_text()
            ask.unlink()
            partial = answer.with_suffix(".partial")
            partial.write_text(repr(eval(question)))
            partial.rename(answer)
        time.sleep(0.002)


def main(where: Path, mebibytes: int, children: int) -> None:
    shared = World(0, mebibytes)
    for index in range(1, children + 1):
        if os.fork() == 0:
            serve(where, index, World(index, mebibytes))
    serve(where, 0, shared)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
