"""fsck: read every byte and follow every reference; say what is damaged and what needs it.

`Repository.fsck` calls `check`, which runs beside readers and savers but not beside gc. With repair, `repair.py` then
puts right what can be put right, and the answer tells what was wrong before and what was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Final, NamedTuple

import msgspec

from ijfs_engine._native.idset import ChunkTable
from ijfs_engine.errors import CorruptError, UnknownFormatError
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import Damage, FsckReport, Leaf, ObjectId, Tree
from ijfs_engine.maintenance.damage_report import Impact
from ijfs_engine.maintenance.index_check import check_index
from ijfs_engine.maintenance.link_check import LinkCheck
from ijfs_engine.maintenance.misnamed_packs import misnamed, put_back
from ijfs_engine.maintenance.pack_check import MISSING_PACK, NO_FRAME, NO_SUCH_PACK, Finding, PackCheck, too_short
from ijfs_engine.maintenance.reachability import TreeWalker, split, walk
from ijfs_engine.maintenance.record_check import RecordCheck
from ijfs_engine.maintenance.repair import Repairer
from ijfs_engine.maintenance.right_keys import check_keys
from ijfs_engine.storage import disk
from ijfs_engine.storage.directory import id_of_packs
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    REFLOG,
    REFS,
    SNAPSHOTS,
    U64,
    View,
    is_whole,
)
from ijfs_engine.storage.journal import Record, RefMoved, StaleIndexError, Transaction, decode_record, replay
from ijfs_engine.storage.key_files import SUFFIX as KEY_SUFFIX
from ijfs_engine.storage.key_files import read_key_files
from ijfs_engine.storage.known_damage import settle
from ijfs_engine.storage.locks import exclusive
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import (
    PACK_HEADER_SIZE,
    SIDECAR_PACK,
    decode_pack_header,
    is_strangers,
    no_packs,
    own_pack_files,
    pack_files,
    pack_number,
    pack_path,
)
from ijfs_engine.storage.refs import ref_name
from ijfs_engine.util.progress import Progress

_FOREIGN_JOURNAL: Final = "the journal is that of another repository"
_LOST: Final = "the index is lost"


def check(repository: OpenRepository, *, repair: bool, data: bool, progress: Progress | None) -> FsckReport:
    """Check, and repair. LockedError beside gc, LockedRepositoryError with wrong keys, StorageError."""
    with (
        disk.storage_errors("fsck"),
        exclusive(repository.directory.gc_lock, "gc or fsck --repair", looking=not repair),
    ):
        checker = Checker(repository, data=data, progress=progress)
        unusable = _unusable(repository)
        if unusable or repair:
            check_keys(repository.directory)
        # They get their names back first: an index is built of all packs, and one of them may be what it misses.
        strays = misnamed(repository.directory)
        done = put_back(repository.directory) if repair and strays else []
        report = _check(checker, unusable, Repairer(repository) if repair else None)
        damage = [*checker.report(strays).damage, *report.damage]
        return msgspec.structs.replace(report, damage=damage, repaired=[*done, *report.repaired])


def _check(checker: Checker, unusable: list[Finding], repairer: Repairer | None) -> FsckReport:
    if not unusable:
        return _check_all(checker, repairer)
    if repairer is None:
        return checker.report(unusable)
    # Nothing that needs the index was asked yet: of a damaged one no row is to be believed.
    repairer.rebuild(keep=unusable[0].message != _LOST)
    report = _check_all(checker, repairer)
    damage = [*checker.report(unusable).damage, *report.damage]
    return msgspec.structs.replace(report, damage=damage, repaired=repairer.done)


def _unusable(repository: OpenRepository) -> list[Finding]:
    """Why the index is not to be used at all."""
    faults = check_index(repository.index)
    if not faults:
        with repository.index.read() as view:
            faults = [] if is_whole(view) else [_LOST]
    return [Finding("index", None, "index", fault) for fault in faults]


def _check_all(checker: Checker, repairer: Repairer | None) -> FsckReport:
    """Check what a usable index says, and with a repairer put it right."""
    findings = checker.run()
    # What needs it is asked first: the repair drops damaged frames from the index.
    report = checker.report(findings)
    if repairer is None:
        return report
    if findings:
        _repair(checker, repairer, findings)
    settle(checker.index, {ident for one in report.damage for ident in one.snapshots})
    return msgspec.structs.replace(report, repaired=repairer.done)


def _repair(checker: Checker, repairer: Repairer, findings: list[Finding]) -> None:
    if any(one.message == _FOREIGN_JOURNAL for one in findings):
        # What is stored anew is committed through the journal.
        repairer.repair_journal(findings)
        findings = checker.run()
    repairer.rescue(findings)
    if any(
        one.what == "index" or one.message in (NO_FRAME, NO_SUCH_PACK) for one in findings
    ) or checker.is_another_index(findings):
        repairer.rebuild(keep=True)
    repairer.repair(checker.run())


class _Names(NamedTuple):
    """All that index and journal both say: what is listed and since when, the refs, and their log."""

    listed: dict[ObjectId, int]
    refs: dict[str, ObjectId]
    log: Sequence[tuple[int, int, Record]]

    @classmethod
    def of_index(cls, view: View) -> _Names:
        listed = {ident: U64.unpack(row)[0] for ident, row in view.items(SNAPSHOTS)}
        refs = {ref_name(key): value for key, value in view.items(REFS)}
        log = [(int.from_bytes(key[:8], "big"), *decode_record(row)) for key, row in view.items(REFLOG)]
        return cls(listed, refs, log)

    @classmethod
    def of_journal(cls, transactions: Iterable[Transaction]) -> _Names:
        known = list(transactions)
        state = replay(known)
        listed = {ident: state.created[ident] for ident in state.listed}
        log = [
            (one.sequence, one.time_ns, record)
            for one in known
            for record in one.records
            if isinstance(record, RefMoved)
        ]
        return cls(listed, state.refs, log)


class Checker:
    """One check."""

    def __init__(self, repository: OpenRepository, *, data: bool, progress: Progress | None) -> None:
        self._repository = repository
        self.index = repository.index
        self._store = repository.store
        self._data = data
        self._progress = progress
        self._bytes_read = 0
        self._counts = dict.fromkeys((SNAPSHOTS, OBJECTS, CHUNKS, PACKS), 0)

    def run(self) -> list[Finding]:
        """Everything that is wrong."""
        with self.index.read() as view:
            self._counts = {table: view.count(table) for table in self._counts}
        if self._data:
            packs = PackCheck(self._repository, self._progress)
            findings = packs.run()
            self._bytes_read = packs.bytes_read
        else:
            findings = list(self._pack_sizes())
        findings += self._format()
        findings += self._keys()
        findings += self._journal()
        findings += self._refs()
        found = {finding.id for finding in findings}
        findings += [one for one in self._references() if one.id not in found]
        return findings

    def is_another_index(self, findings: list[Finding]) -> bool:
        """Whether the index misses packs and does not know others that are there: it is from before some gc."""
        if not any(one.message == MISSING_PACK for one in findings):
            return False
        with self.index.read() as view:
            known = {PACK_KEY.unpack(key)[0] for key, _ in view.items(PACKS)}
        directory = self._repository.directory
        return any(number not in known for number, _ in own_pack_files(directory.packs, directory.id))

    def _strays(self) -> list[str]:
        """Packs of another repository that the index knows nothing of, and what has a pack's name and is no file."""
        directory = self._repository.directory
        with self.index.read() as view:
            known = {PACK_KEY.unpack(key)[0] for key, _ in view.items(PACKS)}
        unknown = [path for number, path in pack_files(directory.packs) if number not in known]
        others = [path for path in no_packs(directory.packs) if pack_number(path) not in known]
        strange = [path for path in unknown if path not in others and is_strangers(path, directory.id)]
        return sorted(path.name for path in (*others, *strange))

    def report(self, findings: list[Finding]) -> FsckReport:
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
            bytes_read=self._bytes_read,
            damage=damage,
            repaired=[],
            strays=self._strays(),
        )

    # --- without reading packs

    def _pack_sizes(self) -> Iterator[Finding]:
        with self.index.read() as view:
            rows = list(view.items(PACKS))
        for key, row in rows:
            (number,), (kind, size) = PACK_KEY.unpack(key), PACK_ROW.unpack(row)
            if kind == SIDECAR_PACK:
                continue  # it was not synced, and nobody counts on it
            path = pack_path(self._repository.directory.packs, number)
            try:
                yield from too_short(path, size)
            except FileNotFoundError:
                yield Finding("pack", None, path.name, MISSING_PACK)

    # --- names

    def _format(self) -> Iterator[Finding]:
        own = self._repository.directory
        if not own.is_sealed() or id_of_packs(own.path) not in (own.id, None):
            yield Finding("format", None, "format", "the file `format` is lost or not that of these packs")

    def _keys(self) -> Iterator[Finding]:
        """Of an encrypted repository the ways to open it that do so no more."""
        own = self._repository.directory
        for name in read_key_files(own.keys).damaged if own.crypt.seals else ():
            key = name.removesuffix(KEY_SUFFIX)
            message = f"a key file is damaged: `ijfs keyring remove {key}`, and `ijfs keyring add {key}` makes it again"
            yield Finding("key", None, f"keys/{name}", message)

    def _journal(self) -> Iterator[Finding]:
        with self.index.read() as view:
            end, sequence = self._repository.journal.position(view)
            said = _Names.of_index(view)
        path = self._repository.directory.journal
        try:
            with disk.read_plain(path) as file:
                _, _, owner = decode_pack_header(file.read(PACK_HEADER_SIZE), path)
            if owner != self._repository.directory.id:
                # What is in it is not held against the index: none of it is about this repository.
                yield Finding("journal", None, "journal", _FOREIGN_JOURNAL)
                return
        except FileNotFoundError:
            yield Finding("journal", None, "journal", "the journal is missing")
            return
        except (CorruptError, UnknownFormatError) as error:
            yield Finding("journal", None, "journal", str(error))
        if behind := self._behind():
            yield behind
            return
        if path.stat().st_size < end:
            yield Finding(
                "journal", None, "journal", f"the journal is shorter than the {end} bytes that the index counts"
            )
        entries = [
            (at, entry)
            for at, entry in self._repository.journal.transactions()
            if (at < end if isinstance(entry, str) else at <= end)
        ]
        broken = [entry for _, entry in entries if isinstance(entry, str)]
        yield from (Finding("journal", None, "journal", message) for message in broken)
        sound = [(at, entry) for at, entry in entries if isinstance(entry, Transaction)]
        if not broken and _Names.of_journal(entry for _, entry in sound) != said:
            # Every line of the journal has a checksum, and no row of the index: where they are of the same moment, the
            # journal is right.
            last = sound[-1] if sound else None
            met = (last[0], last[1].sequence) == (end, sequence) if last else end == PACK_HEADER_SIZE
            what = "index" if met else "journal"
            yield Finding(what, None, what, "the journal and the index disagree on names")

    def _behind(self) -> Finding | None:
        """The index, if the journal has whole transactions that it does not know; one that a save is just writing is
        none, and so it is looked for where no other can write."""
        journal = self._repository.journal
        with self.index.read() as view:
            if not journal.is_longer(view):
                return None
        if self._repository.directory.read_only_reason is not None:
            return None
        try:
            lacking = len(self.index.write(journal.tail))
        except StaleIndexError as error:
            return Finding("index", None, "index", str(error))
        except CorruptError:
            return None  # the journal itself: its damage is named below
        if not lacking:
            return None
        return Finding("index", None, "index", f"the index lacks {lacking} changes that the journal has")

    def _refs(self) -> Iterator[Finding]:
        with self.index.read() as view:
            rows = [(key, value, view.get(SNAPSHOTS, value)) for key, value in view.items(REFS)]
        for key, value, row in rows:
            if row is None:
                message = f"points at the snapshot {value.hex()[:12]}, which is not listed"
                yield Finding("ref", None, key.decode(), message)

    # --- references

    def _references(self) -> Iterator[Finding]:
        """Walk all that is listed: every object is there and can be parsed, every chunk is there and long enough."""
        # The list is read before the chunks, so that a save that commits in between is not checked.
        with self.index.read() as view:
            listed = [ident for ident, _ in view.items(SNAPSHOTS)]
        chunks = ChunkTable(self._counts[CHUNKS])
        for rows in self.index.scan(CHUNKS):
            chunks.add(b"".join(rows.keys), b"".join(rows.values))
        unreadable: list[Finding] = []

        def broken(ident: ObjectId, kind: int, error: CorruptError) -> None:
            what = "content" if self._is_sound(ident) else "missing"
            unreadable.append(Finding(what, ident, ident.hex(), str(error)))

        found: dict[ObjectId, Finding] = {}
        records, links = RecordCheck(self._store, chunks), LinkCheck(self._store)
        for _, ident, children in walk(TreeWalker(self._store, self.index), listed, set(), on_error=broken):
            of_leaf = isinstance(children.record, Leaf)
            what = "a chunk that a leaf names is not there" if of_leaf else "a file's only chunk is not there"
            for chunk in _absent(children.chunks, chunks):
                found.setdefault(chunk, _missing(chunk, what))
            records.take(ident, children)
            if isinstance(children.record, Tree):
                links.take(ident, children.record)
        yield from unreadable
        yield from found.values()
        yield from records.findings()
        yield from links.findings(listed)
        yield from self._baseless(chunks)

    def _is_sound(self, ident: ObjectId) -> bool:
        """Whether something has all the bytes that its id stands for, whatever they say."""
        try:
            kind = self._store.kind_of(ident)
            if kind != FrameKind.CHUNK:
                self._store.get_object(ident, kind)
        except CorruptError:
            return False
        return True

    def _baseless(self, chunks: ChunkTable) -> Iterator[Finding]:
        """Needed chunks whose bases are gone. Chains are short: a few scans of the table do, as in `ReachableSet`."""
        found: dict[ObjectId, Finding] = {}
        before = -1
        while chunks.needed != before:
            before = chunks.needed
            for rows in self.index.scan(BASES):
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


def _missing(ident: ObjectId, message: str) -> Finding:
    return Finding("missing", ident, ident.hex(), message)
