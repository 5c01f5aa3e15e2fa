"""The journal: every change of refs and of the list of snapshots, in order. Packs and journal rebuild the index.

One frame per transaction. It is written and synced inside the index's write transaction, at the place where the index
says the journal ends. What lies behind is from a crash between the two, or the index is an old one: a whole transaction
there that is the next is taken into the index (`journal_tail.py`), and only what a crash tore is cut off. gc writes the
journal anew where most of it tells of what is gone (`maintenance/compact_journal.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgspec

from ijfs_engine.errors import CorruptError, UnknownFormatError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import Codec, EncodedChunk, FrameKind, encode_header, padding
from ijfs_engine.format.row import RowStruct, misshapen
from ijfs_engine.storage import disk
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.index import META, Index, Update, View, is_whole
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, decode_pack_header, encode_pack_header

JOURNAL: Final = 3
"""The kind in the file's pack header."""
_POSITION: Final = RowStruct("<QQ")
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


class StaleIndexError(CorruptError):
    """The journal knows more than the index, and the index cannot be led on to it."""

    default_hint = "`ijfs fsck --repair` rebuilds the index from packs and journal"


class ForeignJournalError(CorruptError):
    """The journal is that of another repository."""

    default_hint = "put back this repository's own, or have `ijfs fsck --repair` write it anew from the index"


TakeIn = Callable[[Update, Sequence[Transaction]], None]
"""Puts transactions into the index that it does not know. CorruptError where it cannot."""
SaysTheSame = Callable[[View, Sequence[Transaction]], bool]
"""Whether these transactions lead to what the index says."""
Relog = Callable[[Update, Sequence[Transaction]], None]
"""Has the index's log of refs be that of these transactions."""


class Journal:
    """The journal of one repository. Only ever changed inside an index write transaction."""

    def __init__(
        self, path: Path, repository: bytes, crypt: Crypt, take_in: TakeIn, says_the_same: SaysTheSame, relog: Relog
    ) -> None:
        self.path = path
        self.crypt = crypt
        self._repository = repository
        self._take_in = take_in
        self._says_the_same = says_the_same
        self._relog = relog
        self._written = -1
        """Where this object last wrote: if the index still says that the journal ends there, that was in vain."""

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
        self.settle(update)
        end, sequence = self.position(update)
        transaction = Transaction(sequence + 1, time.time_ns(), tuple(records))
        frame = encode_transaction(transaction, self.crypt)
        # Opened anew each time: a repair in another process may have put a new file in its place.
        fd = disk.open_plain(self.path, os.O_RDWR)
        self._written = end
        try:
            disk.write(fd, self.path, frame, end)
            disk.fsync(fd, self.path)
        finally:
            os.close(fd)
        self.set_position(update, end + len(frame), transaction.sequence)
        return transaction

    def set_position(self, update: Update, end: int, sequence: int) -> None:
        """Say where the journal ends."""
        update.put(META, _KEY, _POSITION.pack(end, sequence))

    def is_longer(self, view: View) -> bool:
        """Whether there is more than the index knows: a writer is just writing it, or a crash left it. OSError."""
        return self.path.exists() and self.path.stat().st_size > self.position(view)[0]

    def differs(self, view: View) -> bool:
        """Whether it says more than the index knows, or was compacted by one who died of it. What a crash tore at its
        end says nothing, and is left for who writes next. StaleIndexError, CorruptError, OSError."""
        if not self.path.exists():
            return False
        size, end = self.path.stat().st_size, self.position(view)[0]
        return size != end and (size < end or bool(self.tail(view)))

    def settle(self, update: Update) -> None:
        """Make the journal end where the index says: take in what is whole behind, and cut off what is not.

        What was written by itself and did not come to pass, because the index's transaction failed, is cut off, too. gc
        settles before it removes packs that a tail may name. CorruptError where neither may be done, OSError.
        """
        if not is_whole(update):
            raise CorruptError("the index is lost", hint="`ijfs fsck --repair` rebuilds it from the packs")
        self.check_owner()
        end, _ = self.position(update)
        size = file_status(self.path).st_size
        if size != end and self._realign(update):
            return
        if size < end:
            raise CorruptError(
                f"the journal has {size} bytes where the index counts {end}",
                hint="`ijfs fsck --repair` writes it anew from the index",
            )
        if size == end:
            return
        transactions = self.tail(update) if self._written != end else []
        if transactions:
            self._take_in(update, [transaction for _, transaction in transactions])
            end, last = transactions[-1]
            self.set_position(update, end, last.sequence)
        self._cut(end)

    def _realign(self, update: Update) -> bool:
        """Have the index take over a journal that was compacted by somebody who died before its own transaction was
        through: whole, of the same last sequence, and leading to the same. Whether it was such a one. OSError."""
        _, sequence = self.position(update)
        entries = list(self.transactions())
        sound = [entry for _, entry in entries if isinstance(entry, Transaction)]
        if len(sound) != len(entries) or not sound or sound[-1].sequence != sequence:
            return False
        end = entries[-1][0]
        if end != self.path.stat().st_size or not self._says_the_same(update, sound):
            return False
        self._relog(update, sound)
        self.set_position(update, end, sequence)
        return True

    def tail(self, view: View) -> list[tuple[int, Transaction]]:
        """(end offset, transaction) of what is whole and next behind the journal's end.

        StaleIndexError where there is more, and the way to it is damaged; CorruptError where the journal is; OSError.
        """
        end, sequence = self.position(view)
        met, newest = end == PACK_HEADER_SIZE, sequence
        found: list[tuple[int, Transaction]] = []
        for at, entry in self.transactions():
            if isinstance(entry, str):
                continue
            newest = max(newest, entry.sequence)
            if at <= end:
                met = met or (at == end and entry.sequence == sequence)
            elif met and entry.sequence == sequence + len(found) + 1:
                found.append((at, entry))
        if newest > sequence + len(found):
            raise StaleIndexError("the index is older than the journal")
        if not met:
            raise CorruptError("the journal is damaged", hint="`ijfs fsck --repair` writes it anew from the index")
        return found

    def _cut(self, end: int) -> None:
        if self.path.stat().st_size == end:
            return
        fd = disk.open_plain(self.path, os.O_RDWR)
        try:
            disk.truncate(fd, self.path, end)
            disk.fsync(fd, self.path)
        finally:
            os.close(fd)

    def rewrite(
        self, index: Index, transactions: Sequence[Transaction], publish: Callable[[Update], object]
    ) -> Path | None:
        """Replace the whole file, durably; where that of another repository is kept that was there. For repair only.
        StorageError.

        The index is told first, with what `publish` has to say: a crash in between leaves a journal that does not fit
        it, and no writer cuts that.
        """
        data = encode_journal(transactions, self._repository, self.crypt)
        with disk.storage_errors("writing the journal anew"):
            aside = self._keep_foreign()
            temporary = disk.write_beside(self.path, data)
            last = transactions[-1].sequence if transactions else 0

            def tell(update: Update) -> None:
                self.set_position(update, len(data), last)
                publish(update)

            index.write(tell)
            disk.put_in_place(temporary, self.path)
        return aside

    def replace(self, update: Update, data: bytes, sequence: int) -> None:
        """Put another file in the journal's place, durably, and its position into the index: one that ends with the
        same sequence and leads to what the index says. A crash before the commit leaves what `settle` takes over."""
        disk.put_in_place(disk.write_beside(self.path, data), self.path)
        self.set_position(update, len(data), sequence)

    def check_owner(self) -> None:
        """That its head names no other repository: nothing in such a journal is about this one, and a line that is
        added to it is lost to this one. CorruptError, OSError."""
        try:
            with disk.read_plain(self.path) as file:
                _, _, owner = decode_pack_header(file.read(PACK_HEADER_SIZE), self.path)
        except (FileNotFoundError, CorruptError, UnknownFormatError):
            return  # who needs it says so
        if owner != self._repository:
            raise ForeignJournalError(f"the journal {self.path} is that of another repository")

    def _keep_foreign(self) -> Path | None:
        """Copy a journal of another repository beside it, before it is replaced; where. OSError."""
        try:
            self.check_owner()
        except ForeignJournalError:
            aside = self.path.with_name(f"{self.path.name}.foreign-{time.time_ns()}")
            disk.write_file(aside, self.path.read_bytes())
            return aside
        return None

    def transactions(self) -> Iterator[tuple[int, Transaction | str]]:
        """(end offset, transaction) in file order, or (offset, what is damaged there). CorruptError for that of another
        repository, OSError."""
        self.check_owner()
        for scanned in scan_frames(self.path):
            if scanned.frame is None or scanned.header is None:
                yield scanned.offset, scanned.error or "damaged"
                continue
            span = scanned.header.span
            try:
                transaction = decode_transaction(scanned.frame, self.crypt)
            except CorruptError as error:
                yield scanned.offset, str(error)
                continue
            yield scanned.offset + span + padding(span), transaction


def file_status(journal: Path) -> os.stat_result:
    """That of the file. CorruptError where it is missing, OSError."""
    try:
        return journal.stat()
    except FileNotFoundError:
        hint = "`ijfs fsck --repair` writes it anew from the index"
        raise CorruptError(f"the journal {journal} is missing", hint=hint) from None


def encode_journal(transactions: Iterable[Transaction], repository: bytes, crypt: Crypt = PLAIN) -> bytes:
    """The whole file."""
    frames = [encode_transaction(transaction, crypt) for transaction in transactions]
    return b"".join([encode_pack_header(0, JOURNAL, repository), *frames])


def encode_transaction(transaction: Transaction, crypt: Crypt = PLAIN) -> bytes:
    """The frame, padded."""
    plain = _encoder.encode(transaction)
    plain_frame = EncodedChunk(crypt.object_id(FrameKind.JOURNAL, plain), Codec.RAW, len(plain), plain)
    frame = crypt.seal(FrameKind.JOURNAL, plain_frame)
    data = encode_header(FrameKind.JOURNAL, frame) + frame.payload
    return data + bytes(padding(len(data)))


def decode_transaction(stored: EncodedChunk, crypt: Crypt = PLAIN) -> Transaction:
    """From a frame whose checksums hold; CorruptError."""
    frame = crypt.open(FrameKind.JOURNAL, stored)
    if crypt.object_id(FrameKind.JOURNAL, frame.payload) != frame.id:
        raise CorruptError("a journal entry does not match its id")
    try:
        return _decoder.decode(frame.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptError(f"a journal entry cannot be parsed: {error}") from error


def encode_record(time_ns: int, record: Record) -> bytes:
    """A row of the REFLOG table."""
    return _encoder.encode(Transaction(0, time_ns, (record,)))


def decode_record(row: bytes) -> tuple[int, Record]:
    """(time in ns, record) from a row of the REFLOG table. CorruptError."""
    try:
        transaction = _decoder.decode(row)
        return transaction.time_ns, transaction.records[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError) as error:
        raise misshapen() from error


class Replayed(NamedTuple):
    """What the journal says is listed, was removed (with parents), and where the refs are."""

    listed: set[bytes]
    removed: dict[bytes, tuple[bytes, ...]]
    created: dict[bytes, int]
    refs: dict[str, bytes]


def replay(transactions: Iterable[Transaction], onto: Replayed | None = None) -> Replayed:
    """The state after these transactions, applied in order, to nothing or to a state that this changes."""
    state = onto if onto is not None else Replayed(set(), {}, {}, {})
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
