"""A program to dump and restore: python pager_restored.py DIR MEBIBYTES CHILDREN ZEROS.

Each process of its tree evaluates what it finds in DIR/<index>.ask and writes the value to DIR/<index>.answer (files,
because no connection may be open across a dump). `memory` is a mapping whose every mebibyte differs, with ZEROS
mebibytes of written zeros at its end, `objects` a heap of small objects; `bad()` compares all with what they were made
from.
"""

from __future__ import annotations

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

    def __init__(self, index: int, mebibytes: int, zeros: int = 0) -> None:
        self.index = index
        self.mebibytes = mebibytes
        self.zeros = zeros
        length = (mebibytes + zeros) * MIB
        self.memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for at in range(mebibytes):
            self.memory[at * MIB : (at + 1) * MIB] = content(index, at)
        self.memory[mebibytes * MIB : length] = bytes(zeros * MIB)
        self.objects = [str(n) * 3 for n in range(100_000)]

    def bad(self, first: int = 0, count: int = 1 << 20) -> list[object]:
        """What is not as it was, of these mebibytes and of the rest; empty when all is well."""
        end = min(first + count, self.mebibytes)
        found: list[object] = [
            at for at in range(first, end) if self.memory[at * MIB : (at + 1) * MIB] != content(self.index, at)
        ]
        if any(self.memory[self.mebibytes * MIB :]):
            found.append("zeros")
        if self.objects != [str(n) * 3 for n in range(100_000)]:
            found.append("objects")
        return found

    def touch(self, first: int, end: int) -> int:
        """The sum of one byte of every page of these mebibytes."""
        return sum(self.memory[first * MIB : end * MIB : 4096])

    def scatter(self, count: int) -> int:
        """The sum of one byte each of so many pieces of 64 KiB, far from one another."""
        return sum(self.memory[(at * 769 << 16) % len(self.memory)] for at in range(count))

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


def main(where: Path, mebibytes: int, children: int, zeros: int) -> None:
    shared = World(0, mebibytes, zeros)
    for index in range(1, children + 1):
        if os.fork() == 0:
            serve(where, index, World(index, mebibytes))
    serve(where, 0, shared)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
