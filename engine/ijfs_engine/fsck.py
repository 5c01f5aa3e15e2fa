"""fsck: read every byte and follow every reference; say what is damaged and whom it hurts.

`Repository.fsck` calls `check`, which runs beside readers and savers but not beside gc. With repair, `mend.py` then
puts right what can be put right, and the answer tells what was wrong before and what was done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from typing import TYPE_CHECKING

import msgspec

from . import disk
from .blame import Blame
from .errors import CorruptError
from .frames import MAX_CHUNK, Kind
from .index import BASES, CHUNKS, META, OBJECTS, PACK_KEY, PACK_ROW, PACKS, REFS, SNAPSHOTS, Place
from .journal import Transaction, replay
from .locks import exclusive
from .mend import Mender
from .pack import pack_path
from .packcheck import Finding, PackCheck
from .reach import Reach, split
from .records import ZERO_RUN, Damage, FsckReport, Leaf, ObjectId

if TYPE_CHECKING:
    from .repository import Progress, Repository


def check(repository: Repository, *, repair: bool, data: bool, progress: Progress | None) -> FsckReport:
    """Check, and mend. LockedError beside gc, StorageError."""
    with disk.storage_errors("fsck"), exclusive(repository.layout.gc_lock, "gc or fsck --repair"):
        checker = Checker(repository, data=data, progress=progress)
        mender = Mender(repository)
        if not _whole(repository):
            lost = Finding("index", None, "index", "the index is lost")
            if not repair:
                return checker.report([lost], [])
            mender.rebuild()
            findings = [lost, *checker.run()]
        else:
            findings = checker.run()
        # Whom it hurts has to be asked before the repair lets go of what is damaged.
        report = checker.report(findings, [])
        if repair and findings:
            mender.mend(findings)
        return checker.with_repairs(report, mender.done)


def _whole(repository: Repository) -> bool:
    with repository.index.read() as view:
        return view.get(META, b"whole") is not None


class Checker:
    """One check."""

    def __init__(self, repository: Repository, *, data: bool, progress: Progress | None) -> None:
        self._repository = repository
        self._index = repository.index
        self._store = repository.store
        self._packs = PackCheck(repository, progress) if data else None
        self._counts = dict.fromkeys((SNAPSHOTS, OBJECTS, CHUNKS, PACKS), 0)

    def run(self) -> list[Finding]:
        """Everything that is wrong."""
        with self._index.read() as view:
            self._counts = {table: view.count(table) for table in self._counts}
        findings = self._packs.run() if self._packs else list(self._pack_sizes())
        findings += self._journal()
        findings += self._refs()
        found = {finding.id for finding in findings}
        findings += [one for one in self._references() if one.id not in found]
        return findings

    def report(self, findings: list[Finding], repaired: list[str]) -> FsckReport:
        """With the snapshots and files that each finding hurts."""
        blame = Blame(self._repository, {one.id for one in findings if one.id is not None})
        damage = []
        for one in findings:
            victims = blame.of(one.id) if one.id is not None else ((), ())
            damage.append(
                Damage(
                    what=one.what,
                    id=one.id,
                    where=one.where,
                    message=one.message,
                    snapshots=victims[0],
                    files=victims[1],
                )
            )
        return FsckReport(
            snapshots=self._counts[SNAPSHOTS],
            objects=self._counts[OBJECTS],
            chunks=self._counts[CHUNKS],
            packs=self._counts[PACKS],
            bytes_read=self._packs.bytes_read if self._packs else 0,
            damage=damage,
            repaired=repaired,
        )

    @staticmethod
    def with_repairs(report: FsckReport, repaired: list[str]) -> FsckReport:
        """The same report, with what was done."""
        return msgspec.structs.replace(report, repaired=repaired)

    # --- without reading packs

    def _pack_sizes(self) -> Iterator[Finding]:
        with self._index.read() as view:
            rows = list(view.items(PACKS))
        for key, row in rows:
            (number,), (_, size) = PACK_KEY.unpack(key), PACK_ROW.unpack(row)
            path = pack_path(self._repository.layout.packs, number)
            if not path.exists():
                yield Finding("pack", None, path.name, "the pack is missing")
            elif path.stat().st_size < size:
                yield Finding("pack", None, path.name, f"the pack is shorter than its {size} bytes")

    # --- names

    def _journal(self) -> Iterator[Finding]:
        with self._index.read() as view:
            end, _ = self._repository.journal.position(view)
            listed = {ident for ident, _ in view.items(SNAPSHOTS)}
            refs = {key.decode(): value for key, value in view.items(REFS)}
        try:
            entries = [
                entry
                for at, entry in self._repository.journal.transactions()
                if (at < end if isinstance(entry, str) else at <= end)
            ]
        except FileNotFoundError:
            yield Finding("journal", None, "journal", "the journal is missing")
            return
        broken = [entry for entry in entries if isinstance(entry, str)]
        yield from (Finding("journal", None, "journal", message) for message in broken)
        state = replay(entry for entry in entries if isinstance(entry, Transaction))
        if not broken and (state.listed != listed or state.refs != refs):
            yield Finding("journal", None, "journal", "the journal and the index disagree on what is listed")

    def _refs(self) -> Iterator[Finding]:
        with self._index.read() as view:
            rows = [(key, value, view.get(SNAPSHOTS, value)) for key, value in view.items(REFS)]
        for key, value, row in rows:
            if row is None:
                message = f"points at the snapshot {value.hex()[:12]}, which is not listed"
                yield Finding("ref", None, key.decode(), message)

    # --- references

    def _references(self) -> Iterator[Finding]:
        """Walk all that is listed: every object is there and can be parsed, every chunk is there and long enough."""
        findings: list[Finding] = []

        def broken(ident: ObjectId, kind: int, error: CorruptError) -> None:
            findings.append(Finding("missing", ident, ident.hex(), str(error)))

        with self._index.read() as view:
            listed = [ident for ident, _ in view.items(SNAPSHOTS)]
        reach = Reach(self._store, self._index, broken)
        reach.add(listed)
        yield from findings
        bad = {finding.id for finding in findings}
        leaves = [ident for ident in self._of_kind(reach.objects) if ident not in bad]
        for at in range(0, len(leaves), 256):
            group = leaves[at : at + 256]
            for ident, leaf in zip(group, self._store.leaves(group), strict=True):
                yield from self._leaf(ident, leaf)
        yield from self._absent_chunks(reach)

    def _of_kind(self, objects: set[ObjectId]) -> list[ObjectId]:
        with self._index.read() as view:
            rows = view.get_many(OBJECTS, objects)
        return [
            ident
            for ident, row in zip(objects, rows, strict=True)
            if row is not None and Place.decode(row).tag == Kind.LEAF
        ]

    def _leaf(self, ident: ObjectId, leaf: Leaf) -> Iterator[Finding]:
        ids = leaf.chunk_ids()
        with self._index.read() as view:
            rows = view.get_many(CHUNKS, ids)
        sizes = [Place.decode(row).plain if row is not None else None for row in rows]
        for chunk, size in zip(ids, sizes, strict=True):
            if size is None:
                yield Finding("missing", chunk, chunk.hex(), "a chunk that a leaf names is not there")
        for index, offset, length in zip(leaf.index, leaf.offset, leaf.length, strict=True):
            limit = None if index == ZERO_RUN else sizes[index]
            if limit is not None and offset + length > min(limit, MAX_CHUNK):
                yield Finding("missing", ident, ident.hex(), "a leaf names bytes that its chunk does not have")
                return

    def _absent_chunks(self, reach: Reach) -> Iterator[Finding]:
        """Bases that are gone, and files of one chunk whose chunk is."""
        present = 0
        for rows in self._index.scan(CHUNKS):
            present += sum(reach.chunks.has(b"".join(rows.keys)))
        for rows in self._index.scan(BASES):
            needed = reach.chunks.has(b"".join(rows.keys))
            pairs = [(key, list(split(row))) for key, row in compress(zip(*rows, strict=True), needed)]
            with self._index.read() as view:
                bases = {base for _, row in pairs for base in row}
                gone = {base for base in bases if view.get(CHUNKS, base) is None}
            for key, row in pairs:
                if not gone.isdisjoint(row):
                    yield Finding("missing", key, key.hex(), "a chunk that this one is stored against is not there")
        if present < len(reach.chunks):
            yield from self._absent_files()

    def _absent_files(self) -> Iterator[Finding]:
        for ident in Blame(self._repository, set()).missing():
            yield Finding("missing", ident, ident.hex(), "a file's only chunk is not there")
