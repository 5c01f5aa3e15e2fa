"""The repository: the door to everything the engine keeps. Every layer above begins here.

Each verb is a line or two that calls the module which does the work. Modules that only some verbs need (the reader,
the writer, gc, fsck, du, prune) are imported inside those verbs: most commands open a repository and use one of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ijfs_engine.errors import CorruptError, IjfsError, LockedError, StorageError, UnknownNameError
from ijfs_engine.format.crypt import KeyRing
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.records import DiskUsage, FsckReport, GcReport, ObjectId, Snapshot, Stats
from ijfs_engine.remote.remotes import Remotes
from ijfs_engine.storage import disk, listed
from ijfs_engine.storage.directory import RepositoryDirectory, is_repository
from ijfs_engine.storage.index import (
    CHUNKS,
    OBJECTS,
    PACK_ROW,
    PACKS,
    REFS,
    SIDECARS,
    SNAPSHOTS,
    Index,
    View,
    is_whole,
    mark_whole,
)
from ijfs_engine.storage.journal import StaleIndexError, file_status
from ijfs_engine.storage.known_damage import harmed, lost_packs
from ijfs_engine.storage.locks import live_files
from ijfs_engine.storage.open_repository import OpenRepository, open_journal
from ijfs_engine.storage.pins import Pin, PinInfo, live_pins, make_pin

if TYPE_CHECKING:
    from ijfs_engine.maintenance.copying import CopyReport
    from ijfs_engine.maintenance.keys import Keyring
    from ijfs_engine.maintenance.prune import PrunePolicy, PruneReport
    from ijfs_engine.read.reader import Reader
    from ijfs_engine.storage.key_files import KeyFile
    from ijfs_engine.storage.signatures import Signature
    from ijfs_engine.util.progress import Progress
    from ijfs_engine.write.kept_prints import KeptPrints
    from ijfs_engine.write.snapshot_writer import SnapshotWriter

WayIn = Callable[[KeyRing], "KeyFile"]
"""Makes the first way to open a repository that is to be encrypted."""


class Repository(OpenRepository):
    """A repository, open. One per process and path is enough; safe to use from several threads. A context manager."""

    def __init__(self, directory: RepositoryDirectory, index: Index) -> None:
        super().__init__(directory, index)
        self.remotes = Remotes(self)
        self.store.look_elsewhere(self.remotes.elsewhere)

    def close(self) -> None:
        """Let go of every file; safe to call twice."""
        self.remotes.close()
        super().close()

    # --- Opening

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether there is one at a path, of any version, damaged or not."""
        return is_repository(Path(path))

    @classmethod
    def init(cls, path: str | Path, *, way_in: WayIn | None = None) -> Repository:
        """Make one in an empty or absent directory, and open it; with a `way_in` an encrypted one. StorageError,
        IjfsError."""
        ring = KeyRing.made() if way_in is not None else None
        file = way_in(ring) if way_in is not None and ring is not None else None
        return cls.with_keys(path, ring, [file] if file is not None else [])

    @classmethod
    def init_like(cls, path: str | Path, url: str) -> Repository:
        """Make one that can read the tree at a URL: with its keys, where it is encrypted. LockedRepositoryError,
        RemoteError, StorageError, IjfsError."""
        from ijfs_engine.remote.keys import keys_at
        from ijfs_engine.storage.unlocking import open_ring

        files = keys_at(url)
        return cls.with_keys(path, open_ring(url, files) if files else None, files)

    @classmethod
    def with_keys(cls, path: str | Path, ring: KeyRing | None, files: Sequence[KeyFile]) -> Repository:
        """The same with a key ring that there is already, and the ways to it. StorageError, IjfsError."""
        from ijfs_engine.storage.key_files import write_key_file
        from ijfs_engine.storage.unlocking import remember

        directory = RepositoryDirectory.create(Path(path), ring)
        index = Index.open(directory.index, reserve=directory.reserve, crypt=directory.crypt)
        try:
            for file in files:
                write_key_file(directory.keys, file)
            if ring is not None:
                remember(directory.id, ring)
            with disk.storage_errors(f"making a repository at {path}"):
                open_journal(directory).create()
            directory.secret()
            index.write(mark_whole)
            directory.seal()
            directory.reserve.take(index.size_on_disk())
        except BaseException:
            index.close()
            raise
        return cls(directory, index)

    @classmethod
    def open(cls, path: str | Path, *, damaged: bool = False) -> Repository:
        """Open one. NoRepositoryError, UnknownFormatError, StorageError; CorruptError when its index is lost.

        One that can only be read is opened to be read: whatever would change it is a StorageError then. With `damaged`
        it opens without an index too, so that fsck can check and repair.
        """
        directory = RepositoryDirectory.find(Path(path), damaged=damaged)
        if damaged:
            _check_keys(directory)
        if not damaged and not directory.has_index:
            raise _index_lost(directory.path)  # who only looks makes none
        directory.make_missing()
        if damaged and directory.read_only_reason is None:
            return cls(directory, _open_damaged(directory))
        repository = cls(directory, _open_index(directory))
        try:
            repository._check_index(damaged=damaged)
        except BaseException:
            repository.close()
            raise
        return repository

    def _check_index(self, *, damaged: bool) -> None:
        """That there is an index, and that it is not older than the journal: what a crash kept from it is put in."""
        with self.index.read() as view:
            whole = is_whole(view)
            behind = whole and self.directory.read_only_reason is None and self._is_behind(view)
        if not whole and not damaged:
            raise _index_lost(self.path)
        if behind:
            with _damaged_journal_aside():
                self.index.write(self.journal.settle)

    def _is_behind(self, view: View) -> bool:
        with _damaged_journal_aside():
            return self.journal.differs(view)
        return False

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.directory.path

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- Writing and reading

    def begin(
        self,
        parents: Sequence[ObjectId] = (),
        *,
        anew: bool = False,
        progress: Progress | None = None,
        kept: KeptPrints | None = None,
    ) -> SnapshotWriter:
        """Start a snapshot whose bytes resemble those of `parents`. UnknownNameError, CorruptError, StorageError.

        `anew`: where a parent is damaged. It is not read then, and what is stored counts only if it can be read. What
        is needed of a parent that is at a remote is stored here, too. `kept`: what the saves before of the same program
        have seen of its pages; this one is then quicker, and remembers what it sees.
        """
        from ijfs_engine.write.snapshot_writer import begin

        # At the commit it would be too late: packs are written by then that say whose they are.
        with disk.storage_errors(f"opening the journal of {self.path}"):
            self.journal.check_owner()
        far = [parent for parent in parents if not self.is_here(parent) and self.snapshot(parent)]
        lost = lost_packs(self.index, self.directory.packs)
        writer = begin(self, parents, anew=anew, elsewhere=far, lost=lost, progress=progress, kept=kept)
        known = harmed(self.index)
        doubtful = [parent for parent in parents if parent not in far and (lost or parent in known)]
        if doubtful and not anew:
            self._check_parents(writer, doubtful, lost)
        return writer

    def _check_parents(self, writer: SnapshotWriter, parents: Sequence[ObjectId], lost: frozenset[int]) -> None:
        """That a snapshot's parents are whole as far as is known; else its writer is given up. CorruptError."""
        from ijfs_engine.maintenance.harmed_parents import check_parents

        try:
            check_parents(self, parents, lost)
        except BaseException:
            writer.close()
            raise

    def reader(self, *, cache_bytes: int = 64 << 20, delay_s: float | None = None) -> Reader:
        """A reader with a cache of its own. `delay_s` is waited before each fetch, as if the chunks were far away; by
        default $IJFS_FETCH_DELAY_MS, which reaches the readers of every process of a restore. IjfsError."""
        from ijfs_engine.read.reader import Reader

        delay_s = _delay_s() if delay_s is None else delay_s
        return Reader(self.store, cache_bytes=cache_bytes, delay_s=delay_s)

    def working_set(self, ident: ObjectId, *, inherited: bool = True) -> bytes | None:
        """What `put_working_set` kept for a snapshot or, with `inherited`, for its nearest ancestor that has one; it
        may vanish at any time. CorruptError."""
        from ijfs_engine.storage import working_sets

        found = working_sets.find(self, ident, working_sets.MAX_GENERATIONS if inherited else 1)
        return found if found is not None or self.is_here(ident) else self.remotes.working_set(ident)

    def put_working_set(self, ident: ObjectId, data: bytes) -> None:
        """Keep what a restore of a snapshot needed first (at most 1 MiB); the latest one wins. It is no part of the
        snapshot, and goes with it. UnknownNameError, StorageError, ValueError."""
        from ijfs_engine.storage import working_sets

        self.snapshot(ident)
        working_sets.put(self, ident, data)

    # --- History

    def resolve(self, spec: str) -> ObjectId:
        """A snapshot's id from a prefix of at least 4 digits, a branch, a tag, `name~2` or `latest`; behind the name of
        a remote and a slash, one that is there.

        UnknownNameError, AmbiguousNameError (which lists the candidates).
        """
        found = self.remotes.resolve(spec)
        if found is None and len(spec) == 2 * ID_SIZE and self.remotes.lists(spec):
            found = bytes.fromhex(spec)
        return found or listed.resolve(self, spec)

    def snapshot(self, ident: ObjectId) -> Snapshot:
        """The record of a snapshot that is listed, here or at a remote. UnknownNameError."""
        try:
            return listed.snapshot(self, ident)
        except UnknownNameError:
            found = self.remotes.snapshot(ident)
            if found is None:
                raise
            return found

    def is_here(self, ident: ObjectId) -> bool:
        """Whether a snapshot is listed here, and so whole: it can be read without any remote."""
        with self.index.read() as view:
            return view.get(SNAPSHOTS, ident) is not None

    def snapshots(self, newest: int | None = None) -> list[Snapshot]:
        """All, or so many, newest first, without those whose record cannot be read; fsck names these."""
        return listed.snapshots(self, newest)

    def parents(self, ident: ObjectId) -> list[ObjectId]:
        """The parents of a snapshot as they are listed now: for one that was removed, its own nearest ones."""
        return listed.parents(self, ident)

    def nearest(self, candidates: Sequence[ObjectId]) -> ObjectId | None:
        """The first of the candidates that is listed, or the nearest ancestor of one that was removed."""
        return listed.nearest(self, candidates)

    def remove(self, ident: ObjectId) -> None:
        """Take a snapshot out of the tree; gc frees its bytes, those that no other snapshot has.

        Branches at it move to its nearest parent that is left (where its record is damaged, to where the log of names
        says that they stood before), or vanish. A tag or a live instance's pin holds
        it: IjfsError, LockedError. Its children stay whole.
        """
        listed.remove(self, [ident])

    def remove_many(self, ids: Sequence[ObjectId]) -> None:
        """The same for several in one transaction: all of them or none."""
        listed.remove(self, ids)

    def heirs(self, ids: Sequence[ObjectId]) -> dict[str, ObjectId | None]:
        """Where each branch at one of these snapshots would stand if they were removed; None where it would go."""
        return listed.heirs(self, ids)

    def removed(self, prefix: str) -> list[ObjectId]:
        """The snapshots that were removed since the last gc and whose id begins with these digits, at least 4."""
        return listed.removed(self, prefix)

    def bring_back(self, ident: ObjectId) -> Snapshot:
        """List a removed snapshot again, where gc has taken nothing of it. No branch is moved. UnknownNameError,
        LockedError beside a gc."""
        from ijfs_engine.maintenance.bring_back import bring_back

        self.directory.check_writable()
        return bring_back(self, ident)

    def pin(self, ident: ObjectId, owner: str) -> Pin:
        """Keep a snapshot from gc and rm as long as the answer is open and this process lives; of one that is not here
        the pin only says who reads it. UnknownNameError."""
        self.directory.check_writable()
        far = not self.is_here(ident) and self.snapshot(ident) is not None
        return make_pin(self.directory.pins, self.index, ident, owner, elsewhere=far)

    def pins(self) -> list[PinInfo]:
        """The pins whose owners live."""
        with disk.storage_errors("reading the pins"):
            return live_pins(self.directory.pins)

    def sign(self, ident: ObjectId, key: Path) -> bytes:
        """Sign a snapshot that is here with an Ed25519 key of ssh; the public key. UnknownNameError, IjfsError."""
        from ijfs_engine.storage import signatures

        self.directory.check_writable()
        listed.check_listed(self, [ident])
        return signatures.sign(self.directory, ident, key)

    def signers(self, ident: ObjectId) -> list[Signature]:
        """Who signed a snapshot, here or at the remote that has it; signatures that are false are left out."""
        from ijfs_engine.storage import signatures

        found = signatures.read(self.directory, ident) or self.remotes.signatures(ident)
        return signatures.true_signers(ident, found)

    def copy_from(
        self,
        source: Repository,
        refs: Mapping[str, ObjectId],
        *,
        also: Sequence[ObjectId] = (),
        progress: Progress | None = None,
    ) -> CopyReport:
        """As `copying.copy` says: from a repository that is open, whose ids may be others."""
        from ijfs_engine.maintenance.copying import copy

        self.directory.check_writable()
        return copy(source, self, refs, also, progress)

    # --- Maintenance

    def keyring(self) -> Keyring:
        """The ways to open it, and its keys. IjfsError for one that is not encrypted."""
        from ijfs_engine.maintenance.keys import Keyring

        return Keyring(self)

    def prune(self, policy: PrunePolicy, *, dry_run: bool = False) -> PruneReport:
        """Remove what a policy does not keep of each branch; gc then frees the bytes. IjfsError."""
        from ijfs_engine.maintenance.prune import prune

        return prune(self, policy, dry_run=dry_run)

    def du(self, ids: Sequence[ObjectId] | None = None) -> DiskUsage:
        """Who takes how much, and what they share; of all snapshots, or of `ids` against one another."""
        from ijfs_engine.maintenance.disk_usage import disk_usage

        return disk_usage(self, [one.id for one in self.snapshots()] if ids is None else list(ids))

    def gc(self, *, dry_run: bool = False, recompress: bool = False, progress: Progress | None = None) -> GcReport:
        """Free what no branch, tag or pin reaches; with `recompress`, also store anew what takes fewer bytes when zstd
        takes its time. Saves may run meanwhile. LockedError beside another gc."""
        from ijfs_engine.maintenance.gc import collect

        if not dry_run:
            self.directory.check_writable()
        return collect(self, dry_run=dry_run, progress=progress, deep=recompress)

    def fsck(self, *, repair: bool = False, data: bool = True, progress: Progress | None = None) -> FsckReport:
        """Check every reference, and with `data` every stored byte; with `repair`, put right what can be."""
        from ijfs_engine.maintenance.fsck import check

        if repair:
            self.directory.check_writable()
        return check(self, repair=repair, data=data, progress=progress)

    def stats(self) -> Stats:
        """Counts and sizes, from the index."""
        with self.index.read() as view:
            counts = {table: view.count(table) for table in (CHUNKS, OBJECTS, SIDECARS, SNAPSHOTS, PACKS)}
            refs = [key for key, _ in view.items(REFS)]
            pack_bytes = sum(PACK_ROW.unpack(row)[1] for _, row in view.items(PACKS))
        with disk.storage_errors("reading the repository"):
            journal_bytes = file_status(self.directory.journal).st_size
            index_bytes = self.index.size_on_disk()
        branches = sum(key.startswith(b"branch/") for key in refs)
        return Stats(
            snapshots=counts[SNAPSHOTS],
            branches=branches,
            tags=len(refs) - branches,
            chunks=counts[CHUNKS],
            objects=counts[OBJECTS],
            sidecars=counts[SIDECARS],
            packs=counts[PACKS],
            pack_bytes=pack_bytes,
            index_bytes=index_bytes,
            journal_bytes=journal_bytes,
            format_version=self.directory.version,
        )


@contextlib.contextmanager
def _damaged_journal_aside() -> Iterator[None]:
    """A damaged journal keeps nobody from reading: fsck names it, and so hears whoever wants to write."""
    try:
        yield
    except StaleIndexError:
        raise
    except CorruptError:
        pass


def _index_lost(path: Path) -> CorruptError:
    return CorruptError(f"the index of {path} is lost", hint="`ijfs fsck --repair` rebuilds it from the packs")


def _delay_s() -> float:
    """What tests and benchmarks have each fetch wait."""
    text = os.environ.get("IJFS_FETCH_DELAY_MS") or "0"
    if not text.isdecimal():
        raise IjfsError(f"IJFS_FETCH_DELAY_MS is {text!r}, no number of milliseconds")
    return int(text) / 1000


def _open_index(directory: RepositoryDirectory) -> Index:
    return Index.open(
        directory.index,
        read_only_reason=directory.read_only_reason,
        reserve=directory.reserve,
        crypt=directory.crypt,
    )


def _check_keys(directory: RepositoryDirectory) -> None:
    from ijfs_engine.maintenance.right_keys import check_keys  # only fsck opens what is damaged

    check_keys(directory)


def _open_damaged(directory: RepositoryDirectory) -> Index:
    """The index, or an empty one in its place where LMDB cannot even open it: the old one is kept beside it.

    LockedError while a save runs: it would write into the old one.
    """
    try:
        return _open_index(directory)
    except CorruptError:
        pass
    except StorageError as error:
        # What the system refuses for now, or asks to try again, says nothing about the index.
        if error.refused or error.__cause__ is None:
            raise
    with disk.storage_errors("setting the damaged index aside"):
        if any(True for _ in live_files(directory.sessions)):
            raise LockedError("the index is damaged, and a save is running", hint="wait until it ends, or stop it")
        directory.index.rename(directory.path / f"index.damaged-{time.time_ns()}")
    return _open_index(directory)
