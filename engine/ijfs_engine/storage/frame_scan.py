"""Reading a file of frames from front to back, past any damage: fsck, the rebuild and the journal.

Where a header is broken the scan looks for the next place on a multiple of 8 where a frame begins; where only a payload
is, the header says where to go on. Sectors that the disk does not give are zeros to the scan, and so damage.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import (
    ALIGN,
    BASE_SIZE,
    FRAME_MAGIC,
    HEADER_SIZE,
    EncodedChunk,
    FrameHeader,
    decode_frame,
    decode_header,
    padding,
)
from ijfs_engine.storage import disk
from ijfs_engine.storage.pack import PACK_HEADER_SIZE

_WINDOW: Final = 8 << 20
_BLOCK: Final = 4096
"""What is given up at a time where the disk reports an error: the kernel reads no less."""


class Scanned(NamedTuple):
    """One frame at `offset`, or (frame None) the damage there; a header that is sound is given with the damage."""

    offset: int
    header: FrameHeader | None
    frame: EncodedChunk | None
    error: str | None


class Stretch(NamedTuple):
    """Whole frames with sound headers that follow one another from `offset` on."""

    offset: int
    data: memoryview


class _Window:
    """Bytes of a file around a position that only moves forward."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self._start = 0
        self._data = b""

    def at(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes from `offset`; fewer at the end of the file."""
        end = self._start + len(self._data)
        if offset < self._start or offset + length > end:
            self._start = offset
            self._data = _pread(self._fd, max(length, _WINDOW), offset)
        at = offset - self._start
        return memoryview(self._data)[at : at + length]

    def rest(self, offset: int) -> memoryview:
        """What is at hand from `offset` on, read if nothing is."""
        if not self._start <= offset < self._start + len(self._data):
            return self.reread(offset)
        return memoryview(self._data)[offset - self._start : self.size - self._start]

    def reread(self, offset: int) -> memoryview:
        """A full window from `offset` on."""
        self._start, self._data = offset, _pread(self._fd, _WINDOW, offset)
        return memoryview(self._data)[: self.size - offset]

    def find_magic(self, offset: int) -> int:
        """The next multiple of 8 from `offset` where a frame may begin, or the size of the file."""
        while offset < self.size:
            block = bytes(self.at(offset, _WINDOW))
            at = block.find(FRAME_MAGIC)
            while at >= 0 and (offset + at) % ALIGN:
                at = block.find(FRAME_MAGIC, at + 1)
            if at >= 0:
                return offset + at
            offset += max(len(block) - ALIGN, ALIGN)
        return self.size


def scan_frames(path: Path, start: int = PACK_HEADER_SIZE, end: int | None = None) -> Iterator[Scanned]:
    """Every frame and every damaged stretch from `start` to `end` (default: all). OSError.

    A frame's payload is a view that stays valid.
    """
    with _opened(path, end) as window:
        offset = start
        while offset < window.size:
            scanned, offset = _next(window, offset, path.name)
            yield scanned


def scan_stretches(path: Path, most: int, end: int | None = None) -> Iterator[Stretch | Scanned]:
    """The same, at most `most` frames at a time where their headers are sound, and one by one where not. OSError.

    The data stay valid.
    """
    from ijfs_engine._native.frame_check import stretch  # not with the journal, which every command loads

    with _opened(path, end) as window:
        offset = PACK_HEADER_SIZE
        while offset < window.size:
            data = window.rest(offset)
            length = stretch(data, most)
            if not length:
                # It may only be cut by the window's end.
                data = window.reread(offset)
                length = stretch(data, most)
            if length:
                yield Stretch(offset, data[:length])
                offset += length
            else:
                scanned, offset = _next(window, offset, path.name)
                yield scanned


@contextlib.contextmanager
def _opened(path: Path, end: int | None) -> Iterator[_Window]:
    """A file's window that ends at `end`, or where the file does."""
    fd = disk.open_plain(path)
    try:
        size = os.fstat(fd).st_size
        yield _Window(fd, size if end is None else min(size, end))
    finally:
        os.close(fd)


def _next(window: _Window, offset: int, name: str) -> tuple[Scanned, int]:
    where = f"{name} at {offset}"
    try:
        header = _header(window, offset, where)
    except CorruptError as error:
        return Scanned(offset, None, None, str(error)), window.find_magic(offset + ALIGN)
    following = offset + header.span + padding(header.span)
    try:
        _, frame = decode_frame(window.at(offset, min(header.span, window.size - offset)), where)
    except CorruptError as error:
        # A length that passed its CRC and still leads past the end is a file cut short: nothing follows.
        return Scanned(offset, header, None, str(error)), following
    return Scanned(offset, header, frame, None), following


def _header(window: _Window, offset: int, where: str) -> FrameHeader:
    head = window.at(offset, min(HEADER_SIZE, window.size - offset))
    n_bases = head[7] if len(head) == HEADER_SIZE else 0
    whole = HEADER_SIZE + n_bases * BASE_SIZE
    if whole > window.size - offset:
        # Its CRC cannot be looked at, so none of its lengths is believed: a wrong one would hide what follows.
        raise CorruptError(f"{where}: cut short")
    return decode_header(window.at(offset, whole), where)


def _pread(fd: int, length: int, offset: int) -> bytes:
    data = _read(fd, length, offset)
    while len(data) < length:
        more = _read(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _read(fd: int, length: int, offset: int) -> bytes:
    """As `os.pread`; what the disk does not give is zeros, block by block. OSError but for EIO."""
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    length = min(length, os.fstat(fd).st_size - offset)
    data = bytearray()
    while len(data) < length:
        at = offset + len(data)
        size = min(length - len(data), _BLOCK - at % _BLOCK)
        try:
            data += os.pread(fd, size, at) or bytes(size)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data += bytes(size)
    return bytes(data)
