"""fsck --repair: put right what can be put right, and lose nothing that could be kept.

What a reader still gets out of a damaged frame is stored anew (`rescue.py`). What it does not is replaced by another
sound copy where some pack has one; otherwise the index lets go of it, so that the next save that brings the same bytes
stores them again and the snapshots that need them heal. Lost names are found through the journal; a lost journal is
written anew from the index; an index that is lost, damaged, or not what packs and journal say is built from both
(`rebuild_index.py`).
"""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ijfs_engine.errors import CorruptError, StorageError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.frames import EncodedChunk, FrameKind
from ijfs_engine.format.place import Place
from ijfs_engine.maintenance.journal_history import rewrite_journal
from ijfs_engine.maintenance.pack_check import Finding
from ijfs_engine.maintenance.reachability import split
from ijfs_engine.maintenance.rebuild_index import Rebuilder
from ijfs_engine.maintenance.rescue import rescue
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    REFS,
    REMOVED,
    SNAPSHOTS,
    U64,
    Update,
)
from ijfs_engine.storage.journal import SnapshotAdded
from ijfs_engine.storage.names import nearest
from ijfs_engine.storage.new_pack import put_pack
from ijfs_engine.storage.object_store import verify_object
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import DATA_PACK, mend_pack_header, pack_files, pack_path
from ijfs_engine.storage.pack_contents import place_of
from ijfs_engine.storage.refs import log_records, move_ref
from ijfs_engine.util.words import count


class _Copy(NamedTuple):
    """A sound frame of something whose frame in the index is damaged."""

    table: bytes
    place: Place


class Repairer:
    """One repair; `done` says in sentences what it did."""

    def __init__(self, repository: OpenRepository) -> None:
        self._repository = repository
        self._index = repository.index
        self._crypt = repository.directory.crypt
        self.done: list[str] = []

    def rebuild(self, *, keep: bool) -> None:
        """Build the index from packs and journal; with `keep`, the old one is kept under another name. StorageError,
        LockedError while sessions run."""
        self.done += Rebuilder(self._repository).run(keep=keep)

    def rescue(self, findings: list[Finding]) -> None:
        """Store anew what can be read in spite of its damage. StorageError."""
        saved = rescue(self._repository, _damaged(findings))
        if saved:
            self.done.append(f"stored {count(saved, 'damaged frame')} anew, whose bytes could still be read")

    def repair(self, findings: list[Finding]) -> None:
        """Put right what `Checker` found. StorageError."""
        self._repair_format([one for one in findings if one.what == "format"])
        self._repair_packs([one for one in findings if one.what == "pack"])
        self._repair_frames(_damaged(findings))
        self.repair_journal(findings)
        self._repair_refs([one for one in findings if one.what == "ref"])

    # --- frames

    def _repair_frames(self, bad: set[bytes]) -> None:
        if not bad:
            return
        copies = self._copies(bad)
        self._index.write(lambda update: self._replace(update, bad, copies))
        if copies:
            self.done.append(f"took another copy of {count(len(copies), 'damaged frame')}")
        if len(copies) < len(bad):
            lost = len(bad) - len(copies)
            self.done.append(f"let go of {count(lost, 'damaged frame')}: a save that brings the same bytes heals that")
        orphans = self._index.write(_drop_baseless)
        if orphans:
            self.done.append(f"let go of {count(orphans, 'chunk')} stored against damaged ones")

    def _copies(self, bad: set[bytes]) -> dict[bytes, _Copy]:
        """Sound frames of these ids, wherever they stand in a pack; the first of several."""
        found: dict[bytes, _Copy] = {}
        for number, path in pack_files(self._repository.directory.packs):
            for scanned in scan_frames(path):
                if scanned.frame is None or scanned.header is None:
                    continue
                if scanned.frame.id not in bad or scanned.frame.id in found:
                    continue
                if scanned.header.kind == FrameKind.SIDECAR or not self._sound(scanned.header.kind, scanned.frame):
                    continue
                table = CHUNKS if scanned.header.kind == FrameKind.CHUNK else OBJECTS
                found[scanned.frame.id] = _Copy(table, place_of(number, scanned.offset, scanned.header))
        return found

    def _sound(self, kind: int, frame: EncodedChunk) -> bool:
        """Whether its plain bytes are right, too. A chunk against a base is not decided here, and not taken."""
        try:
            opened = self._crypt.open(kind, frame)
            if kind != FrameKind.CHUNK:
                verify_object(kind, opened, self._crypt)
            else:
                chunk_codec.decode(opened, _no_bases, self._crypt)
        except CorruptError:
            return False
        return True

    def _replace(self, update: Update, bad: set[bytes], copies: dict[bytes, _Copy]) -> None:
        for ident in bad:
            for table in (CHUNKS, OBJECTS, BASES):
                update.delete(table, ident)
        for ident, copy in copies.items():
            update.put(copy.table, ident, copy.place.encode())
            path = pack_path(self._repository.directory.packs, copy.place.pack)
            put_pack(update, copy.place.pack, DATA_PACK, path.stat().st_size)

    # --- packs, and the format file

    def _repair_format(self, findings: list[Finding]) -> None:
        if findings:
            self._repository.directory.seal()
            self.done.append("wrote the file `format` anew: packs and journal have the repository's id")

    def _repair_packs(self, findings: list[Finding]) -> None:
        """A pack that is gone is forgotten; its frames are reported, and let go, one by one. A damaged header is
        written anew: it says nothing that is not known; and a row that has a pack longer than it is."""
        if not findings:
            return
        with self._index.read() as view:
            rows = {PACK_KEY.unpack(key)[0]: PACK_ROW.unpack(row) for key, row in view.items(PACKS)}
        gone = [n for n in rows if not pack_path(self._repository.directory.packs, n).exists()]
        if gone:
            keys = [PACK_KEY.pack(number) for number in gone]
            self._index.write(lambda update: update.delete_many(PACKS, keys))
            self.done.append(f"forgot {count(len(gone), 'pack')} without a file")
        named = {one.where for one in findings}
        for number in sorted(rows.keys() - set(gone)):
            path = pack_path(self._repository.directory.packs, number)
            if path.name in named:
                self._mend_header(path, rows[number][0])
                self._mend_size(path, number, *rows[number])

    def _mend_header(self, path: Path, kind: int) -> None:
        """No reader needs the header: where the disk does not take it, the rest is repaired all the same."""
        try:
            if mend_pack_header(path, kind, self._repository.directory.id):
                self.done.append(f"wrote the header of {path.name} anew")
        except OSError as error:
            if error.errno != errno.EIO:
                raise StorageError.of(f"writing the header of {path.name}", error) from error
            self.done.append(f"left the header of {path.name}: the disk does not give it")

    def _mend_size(self, path: Path, number: int, kind: int, size: int) -> None:
        found = path.stat().st_size
        if found < size:
            row = PACK_ROW.pack(kind, found)
            self._index.write(lambda update: update.put(PACKS, PACK_KEY.pack(number), row))
            self.done.append(f"noted that {path.name} has {found} bytes")

    # --- names

    def repair_journal(self, findings: list[Finding]) -> None:
        """Write it anew where something is wrong with it. StorageError."""
        if all(one.what != "journal" for one in findings):
            return
        kept = rewrite_journal(self._repository, self._index)
        self.done += ["wrote the journal anew from the index", *kept]

    def _repair_refs(self, findings: list[Finding]) -> None:
        for finding in findings:
            key = finding.where.encode()
            with self._index.read() as view:
                target = view.get(REFS, key)
            if target is None:
                continue
            change = partial(self._repair_ref, key=key, target=target, created=self._recorded(target))
            self.done.append(self._index.write(change))

    def _recorded(self, ident: bytes) -> int | None:
        """When the snapshot was made, if its record is still to be had."""
        try:
            return self._repository.store.snapshot(ident).created_ns
        except CorruptError:
            return None

    def _repair_ref(self, update: Update, key: bytes, target: bytes, created: int | None) -> str:
        name = key.decode()
        if created is not None and update.get(REMOVED, target) is None:
            update.put(SNAPSHOTS, target, U64.pack(created))
            log_records(update, self._repository.journal, [SnapshotAdded(target, created)])
            return f"listed the snapshot {target.hex()[:12]} again, where {name} points"
        heir = nearest(update, [target])
        log_records(update, self._repository.journal, [move_ref(update, key, target, heir, "fsck --repair")])
        if heir is None:
            return f"deleted {name}: nothing is left of the snapshot {target.hex()[:12]}"
        return f"moved {name} to {heir.hex()[:12]}, the nearest that is left"


def _damaged(findings: list[Finding]) -> set[bytes]:
    """The ids of what cannot be had."""
    return {one.id for one in findings if one.what in ("frame", "missing") and one.id is not None}


def _no_bases(ids: object) -> list[bytes]:
    raise CorruptError("stored against another chunk")


def _drop_baseless(update: Update) -> int:
    """Chunks whose bases are gone cannot be read: let go of them too, so that they can be stored again."""
    dropped = 0
    while True:
        gone = [
            chunk
            for chunk, bases in update.items(BASES)
            if any(update.get(CHUNKS, base) is None for base in split(bases))
        ]
        if not gone:
            return dropped
        for chunk in gone:
            dropped += update.delete(CHUNKS, chunk)
            update.delete(BASES, chunk)
