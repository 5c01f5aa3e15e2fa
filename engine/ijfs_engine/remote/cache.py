"""What was read of packs in object stores, kept on the disk: bounded, least recently used first, shared by all
processes.

Each pack has a sparse file of its own size, in which bytes stand where they stand in the pack, so that compiled loops
read it as any pack. Beside it lies a map: for each block of 16 KiB a u32, 0 for a block that is not here, else the
second of its last use. A block is written before it is marked, and unmarked before it is given back, so a process that
dies leaves nothing marked that is not there. A machine that dies may: what is read is checked against its id like
everything, and a block that was wrong is fetched again (`distrust`).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Condition, Lock
from typing import Final

from ijfs_engine.remote.far_index import FarPack
from ijfs_engine.storage import disk
from ijfs_engine.util.pipeline import thread_pool

BLOCK: Final = 16 << 10
"""What is fetched at least. A chunk's frame has 40 KB on average: with blocks of 64 KiB the working set of a program
was twice as many bytes on the wire."""
_GAP: Final = 128 << 10
"""Missing blocks closer than this are one request, also where what lies between is here: at 1 Gbit/s that takes 1 ms.
After a working set has come, the rest of a program is full of such gaps."""
_LONGEST: Final = 4 << 20
"""One request: longer ones would make a fault wait behind them."""
_AT_ONCE: Final = 64
"""Requests at a time: a working set of 1,000 pieces through 16 took 1.3 s of waiting at 20 ms each."""
_MAX_OPEN: Final = 256
_IN_USE_S: Final = 10
"""What was used so lately stays, even above the limit: somebody is about to read it."""
_LOW: Final = 0.9
"""What is left of the limit after something was given back."""

Fetch = Callable[[FarPack, int, int], bytes]
"""Bytes `start` to `end` of a pack, from its store. StorageError."""


class CachedPack:
    """One pack's file and map, open as long as somebody has it."""

    def __init__(self, directory: Path, pack: FarPack) -> None:
        """OSError."""
        path = directory / pack.pack.hex()
        self.pack = pack
        self.fd = _open_sized(path, pack.size)
        try:
            blocks = -(-pack.size // BLOCK)
            map_fd = _open_sized(path.with_suffix(".map"), 4 * blocks)
            try:
                self._mapped = mmap.mmap(map_fd, 4 * blocks)
            finally:
                os.close(map_fd)
        except BaseException:
            os.close(self.fd)
            raise
        self.used = memoryview(self._mapped).cast("I")
        self._next = 0
        self._ahead = 0

    def __del__(self) -> None:
        if hasattr(self, "used"):
            self.used.release()
            self._mapped.close()
            os.close(self.fd)

    def missing(self, blocks: range) -> Iterator[int]:
        """Those of the blocks that are not here."""
        return (number for number in blocks if not self.used[number])

    def ahead(self, blocks: range) -> range:
        """What to bring along behind blocks that are missing: twice as much each time where reads follow one another
        through the pack, nothing where they jump."""
        near = 0 <= blocks.start - self._next <= self._ahead + 1
        self._ahead = min(max(2 * self._ahead, len(blocks)), _LONGEST // BLOCK) if near and self._next else 0
        end = min(blocks.stop + self._ahead, len(self.used))
        self._next = blocks.stop
        return range(blocks.stop, end)

    def touch(self, blocks: range) -> None:
        """Mark blocks as used now."""
        self.used[blocks.start : blocks.stop] = array("I", [int(time.time())]) * len(blocks)

    def drop(self, blocks: range) -> None:
        """Take the mark from blocks: they are fetched again."""
        self.used[blocks.start : blocks.stop] = array("I", [0]) * len(blocks)


class PackCache:
    """Safe to use from several threads and processes."""

    def __init__(self, directory: Path, limit: int, fetch: Fetch) -> None:
        """`limit` is of bytes on the disk. OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._limit = limit
        self._fetch = fetch
        self._lock = Lock()
        self._open: OrderedDict[int, CachedPack] = OrderedDict()
        self._coming: set[tuple[int, int]] = set()
        self._arrived = Condition(Lock())
        self._fetched = 0
        self._pool = thread_pool(_AT_ONCE, "ijfs-cache")

    def close(self) -> None:
        """Let go of the files; requests on their way are waited for."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            self._open.clear()

    def opened(self, pack: FarPack) -> CachedPack:
        """A pack's file, whatever is in it. OSError."""
        with self._lock:
            found = self._open.get(pack.number)
            if found is None:
                found = self._open[pack.number] = CachedPack(self._directory, pack)
                if len(self._open) > _MAX_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(pack.number)
            return found

    def bring(self, wanted: Sequence[tuple[CachedPack, Sequence[tuple[int, int]]]]) -> None:
        """Have these (offset, length) of packs in their files. StorageError, OSError."""
        spans = [(file, _blocks(file, at, length)) for file, reads in wanted for at, length in reads]
        while True:
            mine, others = self._claim(spans)
            try:
                runs = list(_runs(mine))
                if len(runs) == 1:
                    self._fill(*runs[0])
                else:
                    for future in [self._pool.submit(self._fill, *run) for run in runs]:
                        future.result()
            finally:
                with self._arrived:
                    self._coming.difference_update((file.pack.number, number) for file, number in mine)
                    self._arrived.notify_all()
            if not others:
                break
            with self._arrived:
                self._arrived.wait_for(lambda others=others: not others & self._coming)  # type: ignore[misc]
        for file, blocks in spans:
            file.touch(blocks)

    def _claim(
        self, spans: Sequence[tuple[CachedPack, range]]
    ) -> tuple[list[tuple[CachedPack, int]], set[tuple[int, int]]]:
        """The blocks that are missing and that nobody brings: now we do; and those that others bring."""
        mine: dict[tuple[int, int], CachedPack] = {}
        others: set[tuple[int, int]] = set()
        with self._arrived:
            for file, blocks in spans:
                missing = list(file.missing(blocks))
                for number in missing:
                    key = (file.pack.number, number)
                    if key in self._coming:
                        others.add(key)
                    else:
                        mine[key] = file
                if missing and len(blocks) < _LONGEST // BLOCK:
                    more = ((file.pack.number, number) for number in file.missing(file.ahead(blocks)))
                    mine.update((key, file) for key in more if key not in self._coming)
            self._coming.update(mine)
        return [(file, number) for (_, number), file in mine.items()], others

    def _fill(self, file: CachedPack, blocks: range) -> None:
        start, end = blocks.start * BLOCK, min(blocks.stop * BLOCK, file.pack.size)
        data = self._fetch(file.pack, start, end)
        disk.write(file.fd, self._directory / file.pack.pack.hex(), data, start)
        file.touch(blocks)
        with self._lock:
            self._fetched += len(data)
            full = self._fetched >= self._limit // 16
            self._fetched = 0 if full else self._fetched
        if full:
            self.evict()

    def distrust(self, file: CachedPack, offset: int, length: int) -> None:
        """Bytes that were read were wrong: fetch them again."""
        file.drop(_blocks(file, offset, length))

    def evict(self) -> None:
        """Give back what was not used for the longest time, where more is kept than the limit. OSError."""
        with _alone(self._directory / "lock") as alone:
            held = _held(self._directory) if alone else []
            total = sum(size for _, size in held)
            if total > self._limit:
                self._give_back([path for path, _ in held], total - int(self._limit * _LOW))

    def _give_back(self, paths: Sequence[Path], surplus: int) -> None:
        ages: list[tuple[int, int, int]] = []
        before = int(time.time()) - _IN_USE_S
        for at, path in enumerate(paths):
            used = array("I", path.with_suffix(".map").read_bytes())
            ages += [(second, at, number) for number, second in enumerate(used) if 0 < second <= before]
        ages.sort()
        given = [(at, number) for _, at, number in ages[: -(-surplus // BLOCK)]]
        for at, path in enumerate(paths):
            numbers = [number for which, number in given if which == at]
            if numbers:
                _punch(path, numbers)


def _blocks(file: CachedPack, offset: int, length: int) -> range:
    """The blocks in which bytes lie; what is beyond the pack's end is left out."""
    return range(offset // BLOCK, min(-(-(offset + length) // BLOCK), len(file.used)))


def _runs(blocks: Sequence[tuple[CachedPack, int]]) -> Iterator[tuple[CachedPack, range]]:
    """Blocks of a pack that lie near one another, for one request each; what is between them comes along."""
    ordered = sorted(blocks, key=lambda one: (one[0].pack.number, one[1]))
    first = 0
    for at in range(1, len(ordered) + 1):
        file, start = ordered[first]
        if at < len(ordered):
            following, number = ordered[at]
            near = number - ordered[at - 1][1] <= 1 + _GAP // BLOCK and (number - start) * BLOCK < _LONGEST
            if following is file and near:
                continue
        yield file, range(start, ordered[at - 1][1] + 1)
        first = at


def _open_sized(path: Path, size: int) -> int:
    """A file of that size, made where there is none; of another size it is of no use and made anew. OSError."""
    fd = disk.open_plain(path, os.O_RDWR | os.O_CREAT)
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
    return fd


def _held(directory: Path) -> list[tuple[Path, int]]:
    """The packs that have a file, and what each takes on the disk."""
    found = [path for path in directory.iterdir() if path.suffix == "" and path.with_suffix(".map").exists()]
    return [(path, path.stat().st_blocks * 512) for path in found]


def _punch(path: Path, numbers: Sequence[int]) -> None:
    """Unmark blocks, then give their space back. Who has begun to read them reads zeros, which are no frames."""
    blocks = path.with_suffix(".map").stat().st_size // 4
    with (
        open(path.with_suffix(".map"), "r+b", opener=disk.open_plain) as marks,
        mmap.mmap(marks.fileno(), 4 * blocks) as mapped,
    ):
        for number in numbers:
            mapped[4 * number : 4 * number + 4] = bytes(4)
    fd = disk.open_plain(path, os.O_RDWR)
    try:
        for number in numbers:
            disk.punch(fd, path, number * BLOCK, BLOCK)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether nobody else gives space back just now."""
    fd = disk.open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)
