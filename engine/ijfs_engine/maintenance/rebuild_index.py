"""The index from nothing but the packs and the journal: fsck --repair when the index is lost.

Packs say what every frame is, the journal says what is listed and where the refs are. What gc had already let go, but
was still in some pack, comes back as garbage and goes with the next gc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ijfs_engine.errors import CorruptError, LockedError, UnknownFormatError
from ijfs_engine.format.frames import FrameKind, base_ids
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ObjectId, decode_snapshot
from ijfs_engine.maintenance.journal_history import rewrite_journal
from ijfs_engine.storage.frame_scan import Scanned, scan_frames
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    TABLES,
    U64,
    Update,
    mark_whole,
)
from ijfs_engine.storage.journal import Replayed, SnapshotAdded, Transaction, replay
from ijfs_engine.storage.locks import live_files
from ijfs_engine.storage.object_store import verify_object
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import DATA_PACK, PACK_HEADER_SIZE, SIDECAR_PACK, decode_pack_header, pack_files
from ijfs_engine.storage.refs import branch_key, log_records, log_transaction, move_ref
from ijfs_engine.storage.revisions import removed_row

if TYPE_CHECKING:
    from pathlib import Path


_OBJECTS: Final = frozenset((FrameKind.LEAF, FrameKind.FILE, FrameKind.LAYOUT, FrameKind.TREE, FrameKind.SNAPSHOT))


class _Based(NamedTuple):
    """A chunk stored against others: it goes in once they are in."""

    depth: int
    id: bytes
    place: Place
    bases: bytes


class _Found(NamedTuple):
    """What one pack holds."""

    chunks: dict[bytes, bytes]
    objects: dict[bytes, bytes]
    sidecars: dict[bytes, bytes]


class Rebuilder:
    """One rebuild."""

    def __init__(self, repository: OpenRepository) -> None:
        self._repository = repository
        self._index = repository.index
        self._based: list[_Based] = []
        self._snapshots: dict[ObjectId, tuple[int, tuple[ObjectId, ...]]] = {}

    def run(self) -> list[str]:
        """Fill the empty index; what was done, in sentences. StorageError, LockedError."""
        if any(True for _ in live_files(self._repository.directory.sessions)):
            raise LockedError("a save is running, and it does not know that the index is lost")
        self._index.write(_clear)
        for number, path in pack_files(self._repository.directory.packs):
            self._pack(number, path)
        self._index.write(self._put_based)
        done = self._names()
        self._index.write(mark_whole)
        with self._index.read() as view:
            counts = [view.count(table) for table in (PACKS, CHUNKS, OBJECTS)]
        return ["rebuilt the index: {} packs, {} chunks, {} objects".format(*counts), *done]

    # --- packs

    def _pack(self, number: int, path: Path) -> None:
        found = _Found({}, {}, {})
        kind = _kind(path)
        for scanned in scan_frames(path):
            if scanned.header is None or scanned.frame is None:
                continue
            # Behind damage a scan may find bytes of a program that look like a frame. What is checked against
            # its id can do no harm wherever it stands; fingerprints are not, and count only in their own packs.
            if (scanned.header.kind == FrameKind.SIDECAR) == (kind == SIDECAR_PACK):
                self._frame(number, scanned, found)
        size = path.stat().st_size

        def change(update: Update) -> None:
            update.put(PACKS, PACK_KEY.pack(number), PACK_ROW.pack(kind, size))
            for table, rows in ((CHUNKS, found.chunks), (OBJECTS, found.objects), (SIDECARS, found.sidecars)):
                update.put_many(table, sorted(rows.items()))
            update.set_number(b"next_pack", max(update.number(b"next_pack"), number))

        self._index.write(change)

    def _frame(self, number: int, scanned: Scanned, found: _Found) -> None:
        header, frame = scanned.header, scanned.frame
        assert header is not None
        assert frame is not None
        place = place_of(number, scanned)
        if header.kind == FrameKind.CHUNK and frame.bases:
            self._based.append(_Based(frame.depth, frame.id, place, b"".join(sorted(base_ids(frame.bases)))))
        elif header.kind == FrameKind.CHUNK:
            found.chunks[frame.id] = place.encode()
        elif header.kind == FrameKind.SIDECAR:
            found.sidecars[frame.id] = place.encode()
        elif header.kind in _OBJECTS:
            self._object(scanned, place, found)

    def _object(self, scanned: Scanned, place: Place, found: _Found) -> None:
        header, frame = scanned.header, scanned.frame
        assert header is not None
        assert frame is not None
        try:
            plain = verify_object(header.kind, frame)
            if header.kind == FrameKind.SNAPSHOT:
                snapshot = decode_snapshot(frame.id, plain)
                self._snapshots[frame.id] = (snapshot.created_ns, snapshot.parents)
        except CorruptError:
            return
        found.objects[frame.id] = place.encode()

    def _put_based(self, update: Update) -> None:
        """Put chunks with bases, shallow ones first, so that bases come before. One whose bases are gone stays out."""
        for based in sorted(self._based):
            if update.get(CHUNKS, based.id) is not None:
                continue
            ids = [based.bases[at : at + 32] for at in range(0, len(based.bases), 32)]
            if all(update.get(CHUNKS, base) is not None for base in ids):
                update.put(CHUNKS, based.id, based.place.encode())
                update.put(BASES, based.id, based.bases)

    # --- names

    def _names(self) -> list[str]:
        transactions, whole = self._journal()
        state = replay(transactions)
        lost = [ident for ident in state.listed if ident not in self._snapshots]
        found = [] if whole else [one for one in self._snapshots if one not in state.listed | state.removed.keys()]
        self._index.write(lambda update: self._put_names(update, transactions, state))
        done = []
        if lost:
            done.append(f"{len(lost)} snapshots of the journal are in no pack any more")
        if not whole:
            done.append("the journal is damaged, too: it was written anew")
            rewrite_journal(self._repository)
            done += self._adopt(found)
        return done

    def _journal(self) -> tuple[list[Transaction], bool]:
        """What the journal holds, and whether it is whole."""
        try:
            entries = list(self._repository.journal.transactions())
            with self._repository.directory.journal.open("rb") as file:
                decode_pack_header(file.read(PACK_HEADER_SIZE), self._repository.directory.journal)
        except (FileNotFoundError, CorruptError):
            return [], False
        sound = [(end, entry) for end, entry in entries if isinstance(entry, Transaction)]
        damage = [at for at, entry in entries if isinstance(entry, str)]
        end = max((end for end, _ in sound), default=PACK_HEADER_SIZE)
        # A torn last entry was never acknowledged: it is cut off like any tail.
        whole = not [at for at in damage if at < end]
        last = sound[-1][1].sequence if sound else 0
        self._index.write(lambda update: self._repository.journal.set_position(update, end, last))
        return [entry for _, entry in sound], whole

    def _put_names(self, update: Update, transactions: list[Transaction], state: Replayed) -> None:
        for ident in state.listed & self._snapshots.keys():
            update.put(SNAPSHOTS, ident, U64.pack(self._snapshots[ident][0]))
        for ident, parents in state.removed.items():
            update.put(REMOVED, ident, removed_row(parents))
        for name, ident in state.refs.items():
            update.put(REFS, name.encode(), ident)
        for transaction in transactions:
            log_transaction(update, transaction)

    def _adopt(self, found: list[ObjectId]) -> list[str]:
        """List snapshots that only the packs know of, with a branch at each that is nobody's parent."""
        if not found:
            return []
        parents = {parent for _, those in self._snapshots.values() for parent in those}

        def change(update: Update) -> None:
            for ident in found:
                created = self._snapshots[ident][0]
                update.put(SNAPSHOTS, ident, U64.pack(created))
                records = [SnapshotAdded(ident, created)]
                if ident not in parents:
                    key = branch_key(f"recovered-{ident.hex()[:12]}")
                    log_records(
                        update,
                        self._repository.journal,
                        [*records, move_ref(update, key, None, ident, "fsck --repair")],
                    )
                else:
                    log_records(update, self._repository.journal, records)

        self._index.write(change)
        return [f"found {len(found)} snapshots that no name led to: see the branches recovered-…"]


def place_of(number: int, scanned: Scanned) -> Place:
    """The index row of a frame that a scan found."""
    assert scanned.header is not None
    header = scanned.header
    tag = header.codec if header.kind == FrameKind.CHUNK else header.kind
    return Place(number, scanned.offset, header.span, header.plain, tag, header.depth)


def _kind(path: Path) -> int:
    """The kind of a pack; one with a damaged header is taken for a data pack."""
    try:
        with path.open("rb") as file:
            _, kind, _ = decode_pack_header(file.read(PACK_HEADER_SIZE), path)
    except (CorruptError, UnknownFormatError):
        return DATA_PACK
    return SIDECAR_PACK if kind == SIDECAR_PACK else DATA_PACK


def _clear(update: Update) -> None:
    for table in TABLES:
        update.clear(table)
