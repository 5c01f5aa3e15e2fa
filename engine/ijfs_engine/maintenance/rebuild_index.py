"""The index from nothing but the packs and the journal: fsck --repair when the index is lost, damaged, or too old.

It is built beside the old one and takes its place when it is complete. Packs say what every frame is, the journal says
what is listed and where the refs are; where the journal is damaged, what can still be read of the old index fills in.
What gc had already let go, but was still in some pack, comes back as garbage and goes with the next gc.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError, LockedError, UnknownFormatError
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.records import ObjectId
from ijfs_engine.maintenance.index_check import Rows, salvage
from ijfs_engine.maintenance.journal_history import rewrite_journal
from ijfs_engine.storage import disk
from ijfs_engine.storage.chunk_rows import put_based
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.index import (
    CHUNKS,
    META,
    OBJECTS,
    PACKS,
    REFLOG,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    U64,
    Index,
    Update,
    mark_whole,
)
from ijfs_engine.storage.journal import Replayed, SnapshotAdded, Transaction, replay
from ijfs_engine.storage.locks import live_files
from ijfs_engine.storage.names import removed_row
from ijfs_engine.storage.new_pack import put_pack
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, decode_pack_header, own_pack_files, pack_files
from ijfs_engine.storage.pack_contents import Based, PackContents, Recorded, read_pack
from ijfs_engine.storage.refs import branch_key, log_records, log_transaction, move_ref
from ijfs_engine.util.words import count

_BESIDE: Final = "index.new-"
_DAMAGED: Final = "index.damaged-"


class _History(NamedTuple):
    """What the journal holds, where it ends, and whether nothing of it is missing."""

    transactions: list[Transaction]
    end: int
    whole: bool

    @property
    def last(self) -> int:
        """The sequence of the last transaction."""
        return self.transactions[-1].sequence if self.transactions else 0


class Rebuilder:
    """One rebuild."""

    def __init__(self, repository: OpenRepository) -> None:
        self._repository = repository
        self._based: list[Based] = []
        self._snapshots: dict[ObjectId, Recorded] = {}

    def run(self, *, keep: bool) -> list[str]:
        """Build an index and put it in the place of the old one; what was done, in sentences.

        With `keep` the old one stays beside it under another name, in place of any from an earlier repair.

        StorageError, and LockedError while sessions run, which would go on with the old one."""
        directory = self._repository.directory
        if any(True for _ in live_files(directory.sessions)):
            raise LockedError("a save is running, and it does not know that the index is lost")
        for left in directory.path.glob(_BESIDE + "*"):
            shutil.rmtree(left)
        beside = directory.path / f"{_BESIDE}{time.time_ns()}"
        index = Index.open(beside, reserve=directory.reserve, crypt=directory.crypt)
        try:
            done = self._fill(index)
        except BaseException:
            index.close()
            shutil.rmtree(beside)
            raise
        index.close()
        with disk.storage_errors("putting the new index in place"):
            disk.exchange(beside, directory.index)
            if keep:
                beside.rename(directory.path / f"{_DAMAGED}{time.time_ns()}")
            else:
                shutil.rmtree(beside)
            for old in sorted(directory.path.glob(_DAMAGED + "*"))[:-1]:
                shutil.rmtree(old)
            disk.fsync_dir(directory.path)
        return done

    def _fill(self, index: Index) -> list[str]:
        index.write(mark_whole)
        directory = self._repository.directory
        for number, path in own_pack_files(directory.packs, directory.id):
            contents = read_pack(number, path, directory.crypt)
            self._based += contents.based
            self._snapshots.update(contents.snapshots)
            index.write(partial(_put_pack, number=number, contents=contents))
        index.write(lambda update: put_based(update, self._based))
        self._check_readable(index)
        done = self._names(index)
        with index.read() as view:
            counts = [view.count(table) for table in (PACKS, CHUNKS, OBJECTS)]
        what = ", ".join(count(number, noun) for number, noun in zip(counts, ("pack", "chunk", "object"), strict=True))
        return [f"rebuilt the index: {what}", *done]

    def _check_readable(self, index: Index) -> None:
        """That packs with sound frames gave something: no empty index takes the place of theirs. CorruptError."""
        with index.read() as view:
            if any(view.count(table) for table in (CHUNKS, OBJECTS, SIDECARS)):
                return
        packs = self._repository.directory.packs
        if any(scanned.frame is not None for _, path in pack_files(packs) for scanned in scan_frames(path)):
            raise CorruptError(
                f"nothing in {packs} can be read, and its frames are whole: they are sealed by keys that are not here",
                hint="nothing was changed; put back `format` and `keys` from a copy, or from a remote",
            )

    # --- names

    def _names(self, index: Index) -> list[str]:
        history = self._journal()
        old = self._old_names()
        whole = history.whole and not _is_newer(old, history)
        state = replay(history.transactions) if whole else self._pieced(history, old)
        lost = [ident for ident in state.listed if ident not in self._snapshots]
        found = [] if whole else [one for one in self._snapshots if one not in state.listed | state.removed.keys()]
        index.write(lambda update: self._put_names(update, history, state, {} if whole else old.get(REFLOG, {})))
        done = []
        if lost:
            done.append(f"in no pack any more: {count(len(lost), 'snapshot')} of the journal")
        if not whole:
            done.append("the journal is damaged, too: it was written anew")
            done += rewrite_journal(self._repository, index)
            done += self._adopt(index, found)
        return done

    def _journal(self) -> _History:
        path = self._repository.directory.journal
        try:
            entries = list(self._repository.journal.transactions())
            with disk.read_plain(path) as file:
                decode_pack_header(file.read(PACK_HEADER_SIZE), path)
        except (FileNotFoundError, CorruptError, UnknownFormatError):
            return _History([], PACK_HEADER_SIZE, whole=False)
        sound = [(end, entry) for end, entry in entries if isinstance(entry, Transaction)]
        damage = [at for at, entry in entries if isinstance(entry, str)]
        end = max((end for end, _ in sound), default=PACK_HEADER_SIZE)
        transactions = [entry for _, entry in sound]
        # A torn last entry was never acknowledged: it is cut off like any tail.
        sequences = [one.sequence for one in transactions]
        return _History(transactions, end, sequences == sorted(sequences) and not [at for at in damage if at < end])

    def _old_names(self) -> Rows:
        """What can be read of the old index, or of the one that was set aside because it did not open."""
        directory = self._repository.directory
        aside = sorted(directory.path.glob(_DAMAGED + "*"), key=lambda path: path.name)
        for path in [directory.index, *aside[-1:]]:
            found = salvage(path / "data.mdb", self._repository.directory.crypt)
            if found[META]:
                return found
        return found

    def _pieced(self, history: _History, old: Rows) -> Replayed:
        """What a damaged journal says, completed by the index as far as that knew it."""
        _, known = _position(old)
        state = replay(one for one in history.transactions if one.sequence <= known)
        self._fill_in(state, old)
        return replay((one for one in history.transactions if one.sequence > known), onto=state)

    def _fill_in(self, state: Replayed, old: Rows) -> None:
        """Add what the index said of snapshots that are there."""
        removed, listed = old.get(REMOVED, {}), old.get(SNAPSHOTS, {})
        for ident, row in removed.items():
            state.listed.discard(ident)
            state.removed[ident] = tuple(row[at : at + ID_SIZE] for at in range(1, len(row), ID_SIZE))
        for ident in listed.keys() & self._snapshots.keys():
            state.listed.add(ident)
            state.removed.pop(ident, None)
        for key, value in old.get(REFS, {}).items():
            if value in self._snapshots:
                state.refs[key.decode()] = value

    def _put_names(self, update: Update, history: _History, state: Replayed, log: dict[bytes, bytes]) -> None:
        for ident in state.listed:
            # One whose record is gone is listed all the same: fsck names it, and a save that brings it heals it.
            known = self._snapshots.get(ident)
            created = known.created_ns if known is not None else state.created.get(ident, 0)
            update.put(SNAPSHOTS, ident, U64.pack(created))
        for ident, parents in state.removed.items():
            update.put(REMOVED, ident, removed_row(parents))
        for name, ident in state.refs.items():
            update.put(REFS, name.encode(), ident)
        for transaction in history.transactions:
            log_transaction(update, transaction)
        for key, row in log.items():
            update.put(REFLOG, key, row)
        self._repository.journal.set_position(update, history.end, history.last)

    def _adopt(self, index: Index, found: list[ObjectId]) -> list[str]:
        """List snapshots that only the packs know of, with a branch at each that is nobody's parent."""
        if not found:
            return []
        parents = {parent for one in self._snapshots.values() for parent in one.parents}
        journal = self._repository.journal

        def change(update: Update) -> None:
            for ident in found:
                created = self._snapshots[ident].created_ns
                update.put(SNAPSHOTS, ident, U64.pack(created))
                records = [SnapshotAdded(ident, created)]
                if ident not in parents:
                    key = branch_key(f"recovered-{ident.hex()[:12]}")
                    log_records(update, journal, [*records, move_ref(update, key, None, ident, "fsck --repair")])
                else:
                    log_records(update, journal, records)

        index.write(change)
        return [f"found {count(len(found), 'snapshot')} that no name led to: see the branches recovered-…"]


def _put_pack(update: Update, number: int, contents: PackContents) -> None:
    put_pack(update, number, contents.kind, contents.size)
    rows = ((CHUNKS, contents.chunks), (OBJECTS, contents.objects), (SIDECARS, contents.sidecars))
    for table, found in rows:
        update.put_many(table, sorted(found.items()))


def _is_newer(old: Rows, history: _History) -> bool:
    """Whether an index knew more than the journal says; both of its numbers say so, or one of them is damaged."""
    end, sequence = _position(old)
    return end > history.end and sequence > history.last


def _position(old: Rows) -> tuple[int, int]:
    """Where an index had the journal end, and the sequence of the last transaction that it knew."""
    row = old.get(META, {}).get(b"journal", b"")
    return (U64.unpack(row[:8])[0], U64.unpack(row[8:])[0]) if len(row) == 16 else (0, 0)
