"""fsck: read every byte and follow every reference; say what is damaged and what needs it.

`Repository.fsck` calls `check`, which runs beside readers and savers but not beside gc. With repair, `repair.py` then
puts right what can be put right, and the answer tells what was wrong before and what was done.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress

import msgspec

from ijfs_engine._native.idset import ChunkTable
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.records import Damage, FsckReport, Leaf, ObjectId
from ijfs_engine.maintenance.damage_report import Impact
from ijfs_engine.maintenance.pack_check import Finding, PackCheck
from ijfs_engine.maintenance.reachability import TreeWalker, split, walk
from ijfs_engine.maintenance.repair import Repairer
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import BASES, CHUNKS, OBJECTS, PACK_KEY, PACK_ROW, PACKS, REFS, SNAPSHOTS, is_whole
from ijfs_engine.storage.journal import Transaction, replay
from ijfs_engine.storage.locks import exclusive
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import pack_path
from ijfs_engine.util.progress import Progress


def check(repository: OpenRepository, *, repair: bool, data: bool, progress: Progress | None) -> FsckReport:
    """Check, and repair. LockedError beside gc, StorageError."""
    with (
        disk.storage_errors("fsck"),
        exclusive(repository.directory.gc_lock, "gc or fsck --repair", looking=not repair),
    ):
        checker = Checker(repository, data=data, progress=progress)
        repairer = Repairer(repository)
        with repository.index.read() as view:
            whole = is_whole(view)
        if not whole:
            lost = Finding("index", None, "index", "the index is lost")
            if not repair:
                return checker.report([lost], [])
            repairer.rebuild()
            findings = [lost, *checker.run()]
        else:
            findings = checker.run()
        # What needs it is asked first: the repair drops damaged frames from the index.
        report = checker.report(findings, [])
        if repair and findings:
            repairer.repair(findings)
        return checker.with_repairs(report, repairer.done)


class Checker:
    """One check."""

    def __init__(self, repository: OpenRepository, *, data: bool, progress: Progress | None) -> None:
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
        impact = Impact(self._repository, {one.id for one in findings if one.id is not None})
        damage = []
        for one in findings:
            victims = impact.of(one.id) if one.id is not None else ((), ())
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
            path = pack_path(self._repository.directory.packs, number)
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
        # The list is read before the chunks, so that a save that commits in between is not checked.
        with self._index.read() as view:
            listed = [ident for ident, _ in view.items(SNAPSHOTS)]
        chunks = ChunkTable(self._counts[CHUNKS])
        for rows in self._index.scan(CHUNKS):
            chunks.add(b"".join(rows.keys), b"".join(rows.values))
        unreadable: list[Finding] = []

        def broken(ident: ObjectId, kind: int, error: CorruptError) -> None:
            unreadable.append(_missing(ident, str(error)))

        found: dict[ObjectId, Finding] = {}
        for _, ident, children in walk(TreeWalker(self._store, self._index), listed, set(), on_error=broken):
            what = "a chunk that a leaf names is not there" if children.leaf else "a file's only chunk is not there"
            for chunk in _absent(children.chunks, chunks):
                found.setdefault(chunk, _missing(chunk, what))
            if children.leaf is not None and not _fits(children.leaf, chunks):
                found[ident] = _missing(ident, "a leaf names bytes that its chunk does not have")
        yield from unreadable
        yield from found.values()
        yield from self._baseless(chunks)

    def _baseless(self, chunks: ChunkTable) -> Iterator[Finding]:
        """Needed chunks whose bases are gone. Chains are short: a few scans of the table do, as in `ReachableSet`."""
        found: dict[ObjectId, Finding] = {}
        before = -1
        while chunks.needed != before:
            before = chunks.needed
            for rows in self._index.scan(BASES):
                needed = chunks.is_needed(b"".join(rows.keys))
                if b"\0" not in chunks.need(b"".join(compress(rows.values, needed))):
                    continue
                for key, bases in compress(zip(*rows, strict=True), needed):
                    if any(_absent(bases, chunks)):
                        found[key] = _missing(key, "a chunk that this one is stored against is not there")
        yield from found.values()


def _absent(ids: bytes, table: ChunkTable) -> Iterator[ObjectId]:
    """Those of the chunks that are not there; all of them are needed from now on."""
    there = table.need(ids)
    return compress(split(ids), (not one for one in there)) if b"\0" in there else iter(())


def _fits(leaf: Leaf, chunks: ChunkTable) -> bool:
    return chunks.fits(leaf.ids, leaf.index, leaf.offset, leaf.length)


def _missing(ident: ObjectId, message: str) -> Finding:
    return Finding("missing", ident, ident.hex(), message)
