"""The journal: every change of refs and of the list of snapshots, in order. Packs and journal rebuild the index.

One frame per transaction. It is written and synced inside the index's write transaction, at the place where the index
says the journal ends: what lies behind was never acknowledged, and the next writer cuts it off.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import Codec, EncodedChunk, FrameKind, encode_header, object_id, padding
from ijfs_engine.storage import disk
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.index import META, Update, View
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, encode_pack_header

JOURNAL: Final = 3
"""The kind in the file's pack header."""
_POSITION: Final = struct.Struct("<QQ")
_KEY: Final = b"journal"


class SnapshotAdded(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A snapshot became visible."""

    id: bytes
    created_ns: int


class SnapshotRemoved(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A snapshot was removed. Its parents are kept, so that names find their way past it."""

    id: bytes
    parents: tuple[bytes, ...]


class RefMoved(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A branch or tag (`branch/NAME`, `tag/NAME`) was made (old None), moved or deleted (new None)."""

    name: str
    old: bytes | None
    new: bytes | None
    why: str
    who: str


Record: TypeAlias = SnapshotAdded | SnapshotRemoved | RefMoved


class Transaction(msgspec.Struct, frozen=True, array_like=True):
    """What one frame holds. `sequence` counts from 1."""

    sequence: int
    time_ns: int
    records: tuple[Record, ...]


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Transaction)


class Journal:
    """The journal of one repository. Only ever changed inside an index write transaction."""

    def __init__(self, path: Path, repository: bytes) -> None:
        self.path = path
        self._repository = repository

    def create(self) -> None:
        """An empty one. OSError."""
        disk.write_file(self.path, encode_pack_header(0, JOURNAL, self._repository))

    def position(self, view: View) -> tuple[int, int]:
        """(bytes that count, sequence of the last transaction)."""
        row = view.get(META, _KEY)
        end, sequence = _POSITION.unpack(row) if row else (PACK_HEADER_SIZE, 0)
        return int(end), int(sequence)

    def append(self, update: Update, records: Sequence[Record]) -> Transaction:
        """Write one transaction durably, and its position into the index. CorruptError, OSError."""
        end, sequence = self.position(update)
        transaction = Transaction(sequence + 1, time.time_ns(), tuple(records))
        frame = encode_transaction(transaction)
        # Opened anew each time: a repair in another process may have put a new file in its place.
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._cut(fd, end)
            disk.write(fd, self.path, frame, end)
            disk.fsync(fd, self.path)
        finally:
            os.close(fd)
        self.set_position(update, end + len(frame), transaction.sequence)
        return transaction

    def set_position(self, update: Update, end: int, sequence: int) -> None:
        """Say where the journal ends."""
        update.put(META, _KEY, _POSITION.pack(end, sequence))

    def trim(self, update: Update) -> None:
        """Cut off what was never acknowledged. gc does so before it removes packs that such a tail may name."""
        end, _ = self.position(update)
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._cut(fd, end)
            disk.fsync(fd, self.path)
        finally:
            os.close(fd)

    def rewrite(self, transactions: Sequence[Transaction]) -> int:
        """Replace the whole file, durably; its new end. For repair only."""
        parts = [encode_pack_header(0, JOURNAL, self._repository)]
        parts += [encode_transaction(transaction) for transaction in transactions]
        data = b"".join(parts)
        disk.write_file(self.path, data)
        return len(data)

    def transactions(self) -> Iterator[tuple[int, Transaction | str]]:
        """(end offset, transaction) in file order, or (offset, what is damaged there). OSError."""
        for scanned in scan_frames(self.path):
            if scanned.frame is None or scanned.header is None:
                yield scanned.offset, scanned.error or "damaged"
                continue
            span = scanned.header.span
            try:
                transaction = decode_transaction(scanned.frame)
            except CorruptError as error:
                yield scanned.offset, str(error)
                continue
            yield scanned.offset + span + padding(span), transaction

    def _cut(self, fd: int, end: int) -> None:
        size = os.fstat(fd).st_size
        if size < end:
            raise CorruptError(
                f"the journal has {size} bytes where the index counts {end}",
                hint="`ijfs fsck --repair` writes it anew from the index",
            )
        if size > end:
            disk.truncate(fd, self.path, end)


def encode_transaction(transaction: Transaction) -> bytes:
    """The frame, padded."""
    plain = _encoder.encode(transaction)
    chunk = EncodedChunk(object_id(FrameKind.JOURNAL, plain), Codec.RAW, len(plain), plain)
    header = encode_header(FrameKind.JOURNAL, chunk)
    return header + plain + bytes(padding(len(header) + len(plain)))


def decode_transaction(frame: EncodedChunk) -> Transaction:
    """From a frame whose checksums hold; CorruptError."""
    if object_id(FrameKind.JOURNAL, frame.payload) != frame.id:
        raise CorruptError("a journal entry does not match its id")
    try:
        return _decoder.decode(frame.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptError(f"a journal entry cannot be parsed: {error}") from error


def encode_record(time_ns: int, record: Record) -> bytes:
    """A row of the REFLOG table."""
    return _encoder.encode(Transaction(0, time_ns, (record,)))


def decode_record(row: bytes) -> tuple[int, Record]:
    """(time in ns, record) from a row of the REFLOG table."""
    transaction = _decoder.decode(row)
    return transaction.time_ns, transaction.records[0]


class Replayed(NamedTuple):
    """What the journal says is listed, was removed (with parents), and where the refs are."""

    listed: set[bytes]
    removed: dict[bytes, tuple[bytes, ...]]
    created: dict[bytes, int]
    refs: dict[str, bytes]


def replay(transactions: Iterable[Transaction]) -> Replayed:
    """The state after these transactions, applied in order."""
    state = Replayed(set(), {}, {}, {})
    for transaction in transactions:
        for record in transaction.records:
            match record:
                case SnapshotAdded(id=ident, created_ns=created):
                    state.listed.add(ident)
                    state.created[ident] = created
                    state.removed.pop(ident, None)
                case SnapshotRemoved(id=ident, parents=parents):
                    state.listed.discard(ident)
                    state.removed[ident] = parents
                case RefMoved(name=name, new=None):
                    state.refs.pop(name, None)
                case RefMoved(name=name, new=new):
                    assert new is not None
                    state.refs[name] = new
    return state
