"""Packs for an object store out of frames that are in a repository's packs: built in memory, sent side by side.

A pack is sent whole, then its index, and only then the far index knows it. So a push that breaks off has sent whole
packs, which the next one finds, or what gc of the store takes.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Semaphore
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import HEADER_SIZE, FrameKind, base_ids, decode_header, padding
from ijfs_engine.format.pack_index import (
    CHUNK_PACK,
    METADATA_PACK,
    PACK_ID_SIZE,
    IndexRow,
    PackIndex,
    encode_pack_index,
    trailer,
)
from ijfs_engine.remote.bucket import Bucket, RemoteError
from ijfs_engine.remote.far_index import FarIndex
from ijfs_engine.util.pipeline import thread_pool

TARGET: Final = 64 << 20
"""Bytes of a pack. It is in memory while it is sent, and what a broken push sends again; larger ones gained nothing."""
AT_ONCE: Final = 3
"""Packs on their way at a time."""
PACK_FORMAT: Final = 2
_HEADER: Final = struct.Struct("<8sIIIQ16s16sI")


@dataclass(frozen=True)
class BuiltPack:
    """A whole pack, ready to be sent."""

    contents: PackIndex
    data: bytes
    index_frame: bytes


class PackBuilder:
    """Frames of one pack, in the order they come."""

    def __init__(self, kind: int, store: bytes) -> None:
        """`store` is the id of the tree that it is for."""
        self.kind = kind
        self.pack = os.urandom(PACK_ID_SIZE)
        self._parts: list[bytes] = [encode_header(kind, store, self.pack)]
        self._rows: list[IndexRow] = []
        self.size = len(self._parts[0])

    def add(self, frame: bytes | memoryview) -> None:
        """A whole frame, without padding. CorruptError for a header that is none."""
        header = decode_header(frame)
        bases = b"".join(sorted(base_ids(bytes(frame[HEADER_SIZE : header.span - header.stored]))))
        tag = header.codec if header.kind == FrameKind.CHUNK else header.kind
        if (header.kind == FrameKind.CHUNK) != (self.kind == CHUNK_PACK):
            raise CorruptError(f"a {FrameKind.NAMES[header.kind]} in a pack of another kind")
        self._rows.append(IndexRow(header.id, self.size, header.span, header.plain, tag, header.depth, bases))
        self._parts += [bytes(frame), bytes(padding(header.span))]
        self.size += header.span + padding(header.span)

    def finish(self) -> BuiltPack:
        """The pack with its index at its end."""
        frame = encode_pack_index(self.pack, self.kind, self.size, self._rows)
        data = b"".join([*self._parts, frame, trailer(self.size, len(frame))])
        return BuiltPack(PackIndex(self.pack, self.kind, self.size, tuple(self._rows)), data, frame)


class Sender:
    """Sends frames as packs. Used from one thread; a context manager, which waits for what is on its way."""

    def __init__(self, bucket: Bucket, far: FarIndex, store: bytes, on_sent: Callable[[int], None]) -> None:
        """`on_sent` is told of bytes that have arrived."""
        self._bucket = bucket
        self._far = far
        self._store = store
        self._on_sent = on_sent
        self._builders: dict[int, PackBuilder] = {}
        self._pool = thread_pool(AT_ONCE, "ijfs-send")
        self._room = Semaphore(AT_ONCE + 1)
        self._futures: list[Future[None]] = []
        self.packs: list[bytes] = []
        """Ids of what was sent."""

    def add(self, frame: bytes | memoryview, *, chunk: bool) -> None:
        """One more frame; sent when a pack is full. RemoteError of an earlier one."""
        kind = CHUNK_PACK if chunk else METADATA_PACK
        builder = self._builders.get(kind)
        if builder is None:
            builder = self._builders[kind] = PackBuilder(kind, self._store)
        builder.add(frame)
        if builder.size >= TARGET:
            self._send(self._builders.pop(kind))

    def finish(self) -> None:
        """Send the rest, and wait until all has arrived. RemoteError."""
        for builder in self._builders.values():
            self._send(builder)
        self._builders.clear()
        for future in self._futures:
            future.result()
        self._futures.clear()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _send(self, builder: PackBuilder) -> None:
        for future in [one for one in self._futures if one.done()]:
            self._futures.remove(future)
            future.result()
        self._room.acquire()
        future = self._pool.submit(self._put, builder)
        future.add_done_callback(lambda _: self._room.release())
        self._futures.append(future)

    def _put(self, builder: PackBuilder) -> None:
        pack = builder.finish()
        name = pack_name(pack.contents.pack)
        self._bucket.put(name, pack.data)
        if self._bucket.size(name) != len(pack.data):
            raise RemoteError(f"{self._bucket.url}/{name} did not arrive whole", hint="push again")
        self._bucket.put(f"{name}.index", pack.index_frame)
        self._far.register([pack.contents])
        self.packs.append(pack.contents.pack)
        self._on_sent(len(pack.data))


def encode_header(kind: int, store: bytes, pack: bytes) -> bytes:
    """The first 64 bytes of a pack in an object store; docs/format.md has the table."""
    blank = _HEADER.pack(b"ijfspack", PACK_FORMAT, kind, 0, time.time_ns(), store, pack, 0)
    return blank[:-4] + struct.pack("<I", zlib.crc32(blank[:-4]))


def pack_name(pack: bytes) -> str:
    """Where a pack is in its store."""
    return f"packs/{pack.hex()}"


def working_set_name(ident: bytes) -> str:
    """Where a snapshot's working set is in a store."""
    return f"worksets/{ident.hex()}"
