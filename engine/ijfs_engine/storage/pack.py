"""Pack files: append-only, self-describing, written by one session, read by anyone.

`PackWriter` belongs to a Session; `PackReader` to a Store. Layout and numbers are in docs/format.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from ijfs_engine._native import copies
from ijfs_engine.errors import CorruptError, UnknownFormatError, is_refusal
from ijfs_engine.format.frames import ALIGN, padding
from ijfs_engine.storage import disk
from ijfs_engine.util import buffers
from ijfs_engine.util.pipeline import thread_pool

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

PACK_MAGIC: Final = b"ijfspack"
PACK_VERSION: Final = 1
_ZEROS: Final = bytes(ALIGN)
NUMBERS: Final = 1 << 30
"""No pack here gets a number from here on: a file of such a name was copied or renamed there. Packs elsewhere have
numbers far above (`elsewhere.FAR`)."""
_PACK_NAME: Final = re.compile(r"([0-9a-f]{8})\.pack")
_PACK_HEADER: Final = struct.Struct("<8sIIIQ16s16xI")
PACK_HEADER_SIZE: Final = _PACK_HEADER.size

DATA_PACK: Final = 1
"""A pack of chunks and objects."""
SIDECAR_PACK: Final = 2
"""A pack of droppable sidecars: a crash may cut it short, and losing it loses nothing but time."""

PACK_TARGET: Final = 512 << 20
"""A pack that has grown past this is finished and the next begun: it bounds what a session keeps in memory until
its entries are in the index (20,000 of them), and what gc must rewrite at a time."""
_MUCH: Final = 256 << 10
"""From this length on a read is one of many that follow one another."""
_AHEAD: Final = 32 << 20
"""How far the kernel is asked to read ahead of them: 20 ms of a disk of 1.6 GB/s, in which two cores unpack as much."""
_AHEAD_STEP: Final = 4 << 20
"""Bytes per request: the call that asks for more waits while the disk's queue is full."""
_LOOK_S: Final = 10.0
"""How long a reader at work may hold a pack that gc has removed. A look takes 20 µs where 64 are open."""
BUFFER_SIZE: Final = 4 << 20
"""One write. O_DIRECT wants whole blocks: 730-1200 MB/s against 307 MB/s buffered (2 cores, virtual disk)."""


def pack_path(directory: Path, number: int) -> Path:
    """Where pack `number` is."""
    return directory / f"{number:08x}.pack"


def pack_number(path: Path) -> int | None:
    """The number in a pack's file name, None for any other file."""
    found = _PACK_NAME.fullmatch(path.name)
    return int(found[1], 16) if found else None


def encode_pack_header(number: int, kind: int, repository: bytes) -> bytes:
    """64 bytes; docs/format.md has the table."""
    blank = _PACK_HEADER.pack(PACK_MAGIC, PACK_VERSION, kind, number, time.time_ns(), repository, 0)
    return blank[:-4] + struct.pack("<I", zlib.crc32(blank[:-4]))


def decode_pack_header(data: bytes, path: Path) -> tuple[int, int, bytes]:
    """(number, kind, repository id); CorruptError, UnknownFormatError."""
    if len(data) < PACK_HEADER_SIZE or data[:8] != PACK_MAGIC:
        raise CorruptError(f"{path.name} does not begin like a pack")
    _, version, kind, number, _, repository, crc = _PACK_HEADER.unpack_from(data)
    if zlib.crc32(data[: PACK_HEADER_SIZE - 4]) != crc:
        raise CorruptError(f"the header of {path.name} fails its checksum")
    if version != PACK_VERSION:
        raise UnknownFormatError(f"{path.name} has pack format {version}; this program reads {PACK_VERSION}")
    return number, kind, repository


def is_strangers(path: Path, repository: bytes) -> bool:
    """Whether a pack says, by a sound header, that it is another repository's. OSError where the system refuses."""
    try:
        with disk.read_plain(path) as file:
            return decode_pack_header(file.read(PACK_HEADER_SIZE), path)[2] != repository
    except (CorruptError, UnknownFormatError):
        return False
    except OSError as error:
        if is_refusal(error):
            raise
        return False


def mend_pack_header(path: Path, kind: int, repository: bytes) -> bool:
    """Write the header of a pack anew if it is damaged, with the time of now; whether it was. OSError."""
    number = pack_number(path)
    assert number is not None
    with disk.read_plain(path) as file:
        old = file.read(PACK_HEADER_SIZE)
    try:
        if decode_pack_header(old, path) == (number, kind, repository):
            return False
    except UnknownFormatError:
        return False
    except CorruptError:
        pass
    fd = disk.open_plain(path, os.O_WRONLY)
    try:
        disk.write(fd, path, encode_pack_header(number, kind, repository), 0)
        disk.fsync(fd, path)
    finally:
        os.close(fd)
    return True


class PackWriter:
    """Appends frames to one new pack through two aligned buffers: one fills while the other is written.

    Not thread-safe: its session serialises. The file is flocked from its creation until `close`, so that gc
    leaves it alone before the index knows it.
    """

    def __init__(self, directory: Path, number: int, kind: int, repository: bytes) -> None:
        """Creates the file. FileExistsError if the number is taken; OSError."""
        self.number = number
        self.kind = kind
        self.path = pack_path(directory, number)
        self._fd, self._direct = _create(self.path)
        self._buffers = [buffers.private(BUFFER_SIZE) for _ in range(2)]
        self._fill = 0
        self._written = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._copy(encode_pack_header(number, kind, repository))

    @property
    def size(self) -> int:
        """Bytes appended so far, the header counted."""
        return self._written + self._fill

    def append(self, header: bytes, payload: bytes | memoryview) -> int:
        """Append one frame (padding added); the offset where it begins."""
        return self.append_many([(header, payload)])[0]

    def append_many(self, frames: Iterable[tuple[bytes, bytes | memoryview]]) -> list[int]:
        """Append frames of (header, payload); the offsets where they begin. All that fits is copied in one go."""
        offsets: list[int] = []
        parts: list[bytes | memoryview] = []
        held = 0
        for header, payload in frames:
            span = len(header) + len(payload)
            frame = (header, payload, _ZEROS[: padding(span)])
            offsets.append(self.size + held)
            if self._fill + held + span + len(frame[2]) < BUFFER_SIZE:
                parts += frame
                held += span + len(frame[2])
                continue
            self._fill = copies.join_into(parts, self._buffers[0], self._fill)
            parts, held = [], 0
            for part in frame:
                self._copy(part)
        self._fill = copies.join_into(parts, self._buffers[0], self._fill)
        return offsets

    def cut(self, size: int) -> None:
        """Take back what was appended behind `size` bytes. OSError."""
        self._wait()
        if size < self._written:
            # Written in whole buffers: what stays of the one in which the cut is comes back into memory.
            self._written = size // BUFFER_SIZE * BUFFER_SIZE
            _read_all(self._fd, self._buffers[0], self._written)
            disk.truncate(self._fd, self.path, self._written)
        self._fill = size - self._written

    def finish(self, *, sync: bool = True) -> None:
        """Write what is left and (with sync) wait until it is durable. Names are not synced.

        The rest goes through the page cache: it is no whole block, and the objects in it are the next save's parent.
        """
        self._wait()
        if self._fill:
            self._buffered()
            disk.write(self._fd, self.path, memoryview(self._buffers[0])[: self._fill], self._written)
            self._written += self._fill
            self._fill = 0
        if sync:
            disk.fsync(self._fd, self.path)

    def close(self) -> None:
        """Let go of the file and its flock; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _copy(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            room = BUFFER_SIZE - self._fill
            part, view = view[:room], view[room:]
            self._buffers[0][self._fill : self._fill + len(part)] = part
            self._fill += len(part)
            if self._fill == BUFFER_SIZE:
                self._swap()

    def _swap(self) -> None:
        self._wait()
        if self._pool is None:
            self._pool = thread_pool(1, "pack-writer")
        full = self._buffers[0]
        self._pending = self._pool.submit(self._write, memoryview(full), self._written)
        self._buffers.reverse()
        self._written += BUFFER_SIZE
        self._fill = 0

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, data: memoryview, offset: int) -> None:
        try:
            disk.write(self._fd, self.path, data, offset)
        except OSError as error:
            # Some filesystems take the flag at open and refuse the write.
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._buffered()
            disk.write(self._fd, self.path, data, offset)

    def _buffered(self) -> None:
        """From here on write through the page cache."""
        if self._direct:
            flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            self._direct = False


def _read_all(fd: int, buffer: mmap.mmap, offset: int) -> None:
    """Fill a buffer from a file that reaches so far. OSError."""
    view = memoryview(buffer)
    while view:
        done = os.preadv(fd, [view], offset)
        if not done:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        view, offset = view[done:], offset + done


def _create(path: Path) -> tuple[int, bool]:
    """Create and flock a pack, with O_DIRECT where the filesystem has it."""
    try:
        fd, direct = disk.create(path, os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The kernel creates the file before it looks at the flag.
        path.unlink(missing_ok=True)
        fd, direct = disk.create(path), False
    fcntl.flock(fd, fcntl.LOCK_EX)
    if not os.fstat(fd).st_nlink:
        os.close(fd)
        raise FileExistsError(path)
    return fd, direct


class _OpenPack:
    """A descriptor that closes when the last thread using it lets go of the object."""

    def __init__(self, path: Path) -> None:
        self.fd = disk.open_plain(path)
        self._last = 0
        self._asked = 0

    def is_at(self, path: Path) -> bool:
        """Whether this is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except OSError:
            return False

    def read_ahead(self, begin: int, end: int) -> None:
        """Have the kernel begin to read what follows, where large reads follow one another through the pack.

        The kernel's own read-ahead does not see that they do: several threads take turns at it, and its window is an
        eighth of one such read.
        """
        if end - begin < _MUCH:
            return
        near, self._last = abs(begin - self._last) <= _AHEAD, end
        if not near:
            self._asked = end
        elif self._asked < end + _AHEAD - _AHEAD_STEP:
            self._ask(max(self._asked, end), end + _AHEAD)

    def advise(self, begin: int, end: int) -> None:
        """Large reads from `begin` on are about to come."""
        self._last = begin
        self._ask(begin, min(end, begin + _AHEAD))

    def _ask(self, begin: int, end: int) -> None:
        self._asked = end
        os.posix_fadvise(self.fd, begin, end - begin, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class PackReader:
    """Positioned reads of any pack; keeps the last packs open. Safe to use from several threads.

    An open pack stays readable after gc has removed it, so a reader never meets half a removal. Its space is given back
    when it is closed: now and then while packs are read, and by `forget_removed` for who reads seldom.
    """

    def __init__(self, directory: Path, *, max_open: int = 64, ahead: bool = True) -> None:
        """With `ahead`, the kernel is asked to read on behind large reads."""
        self._directory = directory
        self._ahead = ahead
        self._max_open = max_open
        self._open: OrderedDict[int, _OpenPack] = OrderedDict()
        self._lock = Lock()
        self._looked = time.monotonic()

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Up to `length` bytes (fewer at the end of the file). FileNotFoundError when gc removed the pack; OSError."""
        pack = self._get(number)
        data = os.pread(pack.fd, length, offset)
        while len(data) < length:
            more = os.pread(pack.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    @contextlib.contextmanager
    def opened(self, packs: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Descriptors for the block of (pack number, begin, end) about to be read; -1 for a pack that is gone."""
        found = [self._get_or_none(number) for number, _, _ in packs]
        for pack, (_, begin, end) in zip(found, packs, strict=True):
            if pack is not None and self._ahead:
                pack.read_ahead(begin, end)
        yield [pack.fd if pack is not None else -1 for pack in found]

    def advise_reads(self, packs: Iterable[Sequence[int]]) -> None:
        """Have the kernel begin to read what will soon be asked for: (pack number, begin, end) of each."""
        for number, begin, end in packs:
            pack = self._get_or_none(number)
            if pack is not None and end - begin >= _MUCH:
                pack.advise(begin, end)

    def forget(self, number: int) -> None:
        """Close a pack once no read uses it: its file was replaced or removed."""
        with self._lock:
            self._open.pop(number, None)

    def forget_removed(self) -> None:
        """Close the packs whose files were removed, moved away or replaced, once no read uses them."""
        with self._lock:
            self._forget_removed()

    def _forget_removed(self) -> None:
        self._looked = time.monotonic()
        for number in [one for one, pack in self._open.items() if not pack.is_at(pack_path(self._directory, one))]:
            del self._open[number]

    def close(self) -> None:
        """Let go of all."""
        with self._lock:
            self._open.clear()

    def _get_or_none(self, number: int) -> _OpenPack | None:
        try:
            return self._get(number)
        except FileNotFoundError:
            return None

    def _get(self, number: int) -> _OpenPack:
        with self._lock:
            if time.monotonic() - self._looked > _LOOK_S:
                self._forget_removed()
            pack = self._open.get(number)
            if pack is None:
                pack = self._open[number] = _OpenPack(pack_path(self._directory, number))
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return pack


def pack_files(directory: Path) -> Iterator[tuple[int, Path]]:
    """Every pack file there is, by number, without those whose number none can have."""
    return ((number, path) for number, path in _numbered(directory) if number < NUMBERS)


def own_pack_files(directory: Path, repository: bytes) -> list[tuple[int, Path]]:
    """All but those of another repository, which somebody put there. Where there are no others, they are what there is.
    OSError where the system refuses to look."""
    found = list(pack_files(directory))
    return [(number, path) for number, path in found if not is_strangers(path, repository)] or found


def misnamed_pack_files(directory: Path) -> list[Path]:
    """Those whose number none can have."""
    return [path for number, path in _numbered(directory) if number >= NUMBERS]


def numbers_taken(directory: Path) -> list[int]:
    """The numbers that anything there has for its name, be it a file or not: no pack can be begun under one of them."""
    return [number for path in directory.iterdir() if (number := pack_number(path)) is not None]


def no_packs(directory: Path) -> list[Path]:
    """What has the name of a pack and is no regular file, nor a link to one: nobody reads it, and it is left alone."""
    return [path for path in sorted(directory.iterdir()) if pack_number(path) is not None and not path.is_file()]


def _numbered(directory: Path) -> list[tuple[int, Path]]:
    found = ((pack_number(path), path) for path in directory.iterdir() if not path.is_dir())
    return sorted((number, path) for number, path in found if number is not None)
