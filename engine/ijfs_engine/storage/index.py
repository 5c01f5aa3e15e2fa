"""The index: where every chunk and object is, which snapshots are listed, and where the refs point. LMDB.

Everything in it can be rebuilt from the packs and the journal (`maintenance/rebuild_index.py`), so it holds no payload.
Session, Store, Refs, gc and fsck use it; docs/format.md has its tables, docs/concurrency.md its locks.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Condition, Lock, local
from typing import ClassVar, Final, NamedTuple, TypeVar, cast

import lmdb

from ijfs_engine.errors import CorruptError, StorageError
from ijfs_engine.format.crypt import LOG_TABLE, NAMES_TABLE, PLAIN, Crypt
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.place import NO_PLACE
from ijfs_engine.format.row import RowStruct, misshapen
from ijfs_engine.storage import disk, index_file
from ijfs_engine.storage.index_file import Meta, meta_of
from ijfs_engine.storage.index_pages import Pages, look_over, look_through, read_head
from ijfs_engine.storage.index_stamp import Stamp
from ijfs_engine.storage.reserve import Reserve

T = TypeVar("T")

CHUNKS: Final = b"chunks"
"""Chunk id → Place; its `tag` is the codec."""
OBJECTS: Final = b"objects"
"""Object id → Place; its `tag` is the kind."""
BASES: Final = b"bases"
"""Chunk id → ids of the chunks its codec needs, 32 bytes each."""
SIDECARS: Final = b"sidecars"
"""Leaf id → Place of its fingerprints; snapshot id → Place of its working set."""
SNAPSHOTS: Final = b"snapshots"
"""Snapshot id → u64 creation time, ns."""
REMOVED: Final = b"removed"
"""Id of a snapshot that was removed → u8 1 until gc has walked it once more, then ids of its parents, so that `name~2`
and branches find their way past it."""
REFS: Final = NAMES_TABLE
"""b"branch/NAME" or b"tag/NAME" → snapshot id."""
REFLOG: Final = LOG_TABLE
"""u64 sequence, u16 position → journal record."""
PACKS: Final = b"packs"
"""u32 pack number → u8 kind, u64 bytes."""
CONDEMNED: Final = b"condemned"
"""Id of a chunk or object that gc found unreachable → u64 epoch in which it did."""
META: Final = b"meta"
"""b"next_pack", b"epoch", b"journal" (end, sequence) → little-endian u64s; b"whole" → b"1" (`is_whole`)."""

TABLES: Final = (
    CHUNKS, OBJECTS, BASES, SIDECARS, SNAPSHOTS, REMOVED, REFS, REFLOG, PACKS, CONDEMNED, META,
)  # fmt: skip

FIRST_MAP: Final = 64 << 20
"""The map LMDB begins with: 800,000 chunks. It doubles when it is full, by at most `MAX_GROWTH` at a time."""
MAX_GROWTH: Final = 64 << 30
_SCAN: Final = 8192
"""Rows of a scan in one view: 0.3 µs a row; 20,000 at once take a fifth longer, being out of the processor's cache."""
_LARGE: Final = 64 << 20
"""Bytes of index from which on the pages that were looked at are released (index_file.py)…"""
_LOOKS: Final = 1024
"""…after so many look-ups. The kernel maps 16 pages around each: 64 MB at most. Costs 5% of the look-ups' time."""
_META_TRIES: Final = 100
"""Looks at the meta pages until one is of the transaction that was just begun: writers may commit twice in between…"""
_META_PAUSE_S: Final = 0.001
"""…and then this is waited."""
_READERS: Final = 1024
"""Reader slots, 64 bytes each: threads of all processes that read at the same instant."""

_ATTEMPTS: Final = 4
"""Tries of a transaction on a disk that seems full, each with four times as much room made for it as the one before…"""
_ROOM: Final = 256 << 10
"""…beginning with this: a change of names writes 40 pages or so."""

_WHOLE: Final = b"whole"
"""The META row that tells an index from the empty one LMDB makes where there is none."""

U64: Final = RowStruct("<Q")
PACK_KEY: Final = RowStruct(">I")
PACK_ROW: Final = RowStruct("<BQ")


_SIZES: Final = {CHUNKS: len(NO_PLACE), OBJECTS: len(NO_PLACE), SIDECARS: len(NO_PLACE), SNAPSHOTS: 8, CONDEMNED: 8}
"""Of the values in tables by id, where all are of one size: compiled loops take them end to end."""


class Rows(NamedTuple):
    """Rows of a table as columns, in key order."""

    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]


def _fits(table: bytes, rows: Rows) -> bool:
    """Whether rows have sizes that those of the table can have."""
    if table == BASES:
        return set(map(len, rows.keys)) == {ID_SIZE} and not any(len(value) % ID_SIZE for value in rows.values)
    size = _SIZES.get(table)
    return size is None or (set(map(len, rows.keys)), set(map(len, rows.values))) == ({ID_SIZE}, {size})


class View:
    """One consistent state of the tables: a read transaction. Short-lived; never nest two in a thread."""

    def __init__(
        self,
        txn: lmdb.Transaction,
        tables: dict[bytes, lmdb._Database],
        looked: Callable[[int], None],
        crypt: Crypt = PLAIN,
    ) -> None:
        """`looked` is told of every `_LOOKS` look-ups or so."""
        self._txn = txn
        self._tables = tables
        self._looked = looked
        self._crypt = crypt

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """The value, or None. CorruptError for a sealed row that was altered."""
        if self._crypt.hides(table):
            return self._get_sealed(table, key)
        return cast("bytes | None", self._txn.get(key, db=self._tables[table]))

    def _get_sealed(self, table: bytes, key: bytes) -> bytes | None:
        stored = self._crypt.row_key(table, key)
        sealed = self._txn.get(stored, db=self._tables[table])
        if sealed is None:
            return None
        name, value = self._crypt.open_row(table, stored, bytes(sealed))
        if name != key:
            raise misshapen()
        return value

    def get_many(self, table: bytes, keys: Iterable[bytes]) -> list[bytes | None]:
        """The values in the order asked, None where there is none. Of a table that is never sealed."""
        get, handle = self._txn.get, self._tables[table]
        keys, found = iter(keys), []
        while lot := [cast("bytes | None", get(key, db=handle)) for key in itertools.islice(keys, _LOOKS)]:
            found += lot
            self._looked(len(lot))
        return found

    def bases(self, chunks: Iterable[bytes]) -> list[bytes]:
        """The ids of the chunks that each of some chunks is stored against, end to end. CorruptError."""
        found = [row or b"" for row in self.get_many(BASES, chunks)]
        if any(len(row) % ID_SIZE for row in found):
            raise misshapen()
        return found

    def count(self, table: bytes) -> int:
        """Rows, in constant time."""
        return int(self._txn.stat(self._tables[table])["entries"])

    def pages(self, table: bytes) -> int:
        """4 KiB pages the table takes."""
        stat = self._txn.stat(self._tables[table])
        return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    def items(self, table: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows from `start` on, in key order. CorruptError for a sealed row that was altered."""
        if self._crypt.hides(table):
            yield from self._sealed_items(table, start)
            return
        cursor = self._txn.cursor(db=self._tables[table])
        if cursor.set_range(start) if start else cursor.first():
            yield from cast("Iterator[tuple[bytes, bytes]]", cursor.iternext())

    def _sealed_items(self, table: bytes, start: bytes) -> list[tuple[bytes, bytes]]:
        """All at once: sealed names are in no order on the disk, and there are few of them."""
        cursor = self._txn.cursor(db=self._tables[table])
        rows = (
            (self._crypt.open_row(table, bytes(key), bytes(value)) for key, value in cursor) if cursor.first() else ()
        )
        return sorted(row for row in rows if row[0] >= start)

    def prefixed(self, table: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key begins with `prefix`."""
        for key, value in self.items(table, prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def last(self, table: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key."""
        cursor = self._txn.cursor(db=self._tables[table])
        return cast("tuple[bytes, bytes]", cursor.item()) if cursor.last() else None

    def number(self, key: bytes) -> int:
        """A counter of META, 0 where there is none."""
        row = self.get(META, key)
        return int(U64.unpack(row)[0]) if row else 0


class Update(View):
    """A write transaction: sees its own changes; all of them become durable and visible together, or none."""

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        """Set one row."""
        if self._crypt.hides(table):
            key, value = self._crypt.seal_row(table, key, value)
        self._txn.put(key, value, db=self._tables[table])
        self._looked(1)

    def put_many(self, table: bytes, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Set many rows; those sorted by key go in fastest."""
        if self._crypt.hides(table):
            rows = sorted(self._crypt.seal_row(table, key, value) for key, value in rows)
        with self._txn.cursor(db=self._tables[table]) as cursor:
            cursor.putmulti(rows)
        self._looked(_LOOKS)

    def delete(self, table: bytes, key: bytes) -> bool:
        """Drop one row; whether there was one."""
        self._looked(1)
        return bool(self._txn.delete(self._crypt.row_key(table, key), db=self._tables[table]))

    def delete_many(self, table: bytes, keys: Iterable[bytes]) -> None:
        """Drop rows, where they exist."""
        delete, handle, crypt = self._txn.delete, self._tables[table], self._crypt
        for key in keys:
            delete(crypt.row_key(table, key) if crypt.hides(table) else key, db=handle)
        self._looked(_LOOKS)

    def clear(self, table: bytes) -> None:
        """Drop every row."""
        self._txn.drop(self._tables[table], delete=False)

    def set_number(self, key: bytes, value: int) -> None:
        """Set a counter of META."""
        self.put(META, key, U64.pack(value))


class Index:
    """The tables, for one user: many processes and threads read them while one at a time writes.

    LMDB allows one environment per process and directory, so users share it (`_Environment`). One that a repair put
    another in the place of is left for that: whoever has the repository open goes on with the new one.

    Where the repository can only be read there is no reader slot to take, so that a writer (who has it writable
    elsewhere) may reuse the pages of a view that is still open: `read` notices, and says so.
    """

    def __init__(
        self,
        path: Path,
        *,
        map_size: int = FIRST_MAP,
        read_only_reason: StorageError | None = None,
        reserve: Reserve | None = None,
        crypt: Crypt = PLAIN,
    ) -> None:
        self.path = path
        self.crypt = crypt
        self._reserve = reserve
        self._read_only_reason = read_only_reason
        self._map_size = map_size
        self._data = path / "data.mdb"
        self._looked = 0
        self._changing = Lock()
        self._closed = False
        self._environment = self._share()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        map_size: int = FIRST_MAP,
        read_only_reason: StorageError | None = None,
        reserve: Reserve | None = None,
        crypt: Crypt = PLAIN,
    ) -> Index:
        """The index in that directory; with a `read_only_reason` it can only be read, and every `write` raises that.
        `reserve` is given up when the disk is full; `crypt` seals rows that hold names.

        CorruptError for one that LMDB could not even open without harm, StorageError."""
        if read_only_reason is None:
            with disk.storage_errors(f"the index {path} does not open"):
                path.mkdir(mode=0o700, exist_ok=True)
        return cls(path, map_size=map_size, read_only_reason=read_only_reason, reserve=reserve, crypt=crypt)

    def close(self) -> None:
        """Let go; the last user of the process closes the environment. Safe to call twice."""
        with self._changing:
            if not self._closed:
                self._closed = True
                self._environment.release()

    def _share(self) -> _Environment:
        with disk.storage_errors(f"the index {self.path} does not open"):
            return _Environment.share(
                self.path, self._map_size, self._reserve, read_only=self._read_only_reason is not None
            )

    def _current(self) -> _Environment:
        """The environment, the new one where another was put in its place."""
        found = self._environment
        if found.is_replaced():
            with self._changing:
                if self._environment is found and not self._closed:
                    self._environment = self._share()
                    found.release()
                found = self._environment
        return found

    @contextlib.contextmanager
    def read(self) -> Iterator[View]:
        """A consistent view for the block. Never waits for a writer. StorageError."""
        environment = self._current()
        with disk.storage_errors("reading the index"), environment.transaction(write=False) as txn:
            try:
                yield View(txn, environment.tables, self._count, self.crypt)
            finally:
                if self._read_only_reason is not None:
                    self._check_undisturbed(environment, txn)

    def _check_undisturbed(self, environment: _Environment, txn: lmdb.Transaction) -> None:
        """Nobody can have written into pages of this view. What the next commit sets free, the third begins to reuse
        (LMDB's `mdb_page_alloc`: pages freed before the last commit but one), and writes when it commits."""
        if environment.last_transaction() > txn.id() + 1:
            raise StorageError(
                f"somebody writes into {self.path} while it is read here without locks",
                hint="try again when they are done, or where the repository is writable",
            )

    def scan(self, table: bytes, start: bytes = b"", stop: bytes | None = None) -> Iterator[Rows]:
        """Every row of a table, or those from `start` on and before `stop`, some thousand at a time. CorruptError for
        one of a wrong size, StorageError.

        Each lot has a view of its own, so that none lives long and keeps pages from reuse; rows that come and go
        meanwhile may be seen or not. The process's memory does not grow by what was looked at.
        """
        while True:
            with self.read() as view:
                items = view.items(table, start)
                wanted = items if stop is None else itertools.takewhile(lambda item: item[0] < stop, items)
                rows = list(itertools.islice(wanted, _SCAN))
            self._count(_LOOKS)
            if rows:
                found = Rows(*zip(*rows, strict=True))
                if not _fits(table, found):
                    raise misshapen()
                yield found
            if len(rows) < _SCAN:
                return
            start = rows[-1][0] + b"\0"

    @contextlib.contextmanager
    def pages(self) -> Iterator[Pages]:
        """The pages of one consistent state, to be looked at without LMDB; writers go on meanwhile. StorageError."""
        with (
            disk.storage_errors("reading the index"),
            disk.read_plain(self._data) as data,
            self._current().one_state(data.fileno()) as meta,
        ):
            yield Pages(data.fileno(), meta)

    def write(self, change: Callable[[Update], T], *, last_room: bool = True) -> T:
        """Run `change` in a write transaction, commit it durably, and return what it returned.

        Waits for the writer before it. `change` runs again from the start when the map had to grow or the disk was
        full: apart from the transaction it may only do what can be repeated. An exception from it aborts. StorageError.
        With `last_room` the repository's reserve is given up where the disk has no other room.
        """
        if self._read_only_reason is not None:
            raise self._read_only_reason
        with disk.storage_errors("writing the index"):
            attempt = 0
            while True:
                environment = self._current()
                try:
                    return self._write_once(environment, change)
                except lmdb.MapFullError:
                    environment.grow()
                except (OSError, lmdb.Error) as error:
                    if attempt == _ATTEMPTS or not _may_be_full(error):
                        raise
                    self._make_room(environment, _ROOM << 2 * attempt, last_room=last_room)
                    attempt += 1

    def _write_once(self, environment: _Environment, change: Callable[[Update], T]) -> T:
        with environment.transaction(write=True) as txn:
            sound = environment.stamp.is_fresh()
            # As the only writer: rows that are sealed by a key which a rotation retires would be lost.
            self.crypt.renew()
            result = change(Update(txn, environment.tables, self._count, self.crypt))
            disk.note("commit", self.path)
        if sound:
            environment.stamp.renew()
        self._count(_LOOKS)
        return result

    def _make_room(self, environment: _Environment, length: int, *, last_room: bool) -> None:
        """Have the disk promise room for a transaction: so many bytes behind what the index has. If it has none, the
        reserve goes, and what that leaves is for whoever needs it. OSError where there is none either."""
        with environment.transaction(write=True) as txn:
            # As the only writer: `disk.allocate` wants that.
            try:
                self._lengthen(environment, length)
            except OSError as error:
                given = disk.is_full(error) and last_room and self._reserve is not None and self._reserve.give_up()
                if not given:
                    raise
                with contextlib.suppress(OSError):
                    self._lengthen(environment, length)
            txn.abort()

    def _lengthen(self, environment: _Environment, length: int) -> None:
        fd = disk.open_plain(self._data, os.O_RDWR)
        try:
            used = (environment.last_page() + 1) * environment.page_size
            disk.allocate(fd, self._data, max(os.fstat(fd).st_size, used + length))
        finally:
            os.close(fd)

    def _count(self, looked: int) -> None:
        """Let go of the pages of a large map now and then: this process would seem to need what is only cached."""
        self._looked += looked
        if self._looked >= _LOOKS:
            self._looked = 0
            if self._environment.last_page() > _LARGE // mmap.PAGESIZE:
                index_file.release_pages(self._data)

    @property
    def map_size(self) -> int:
        """Bytes of address space that the index may fill before it grows again."""
        return self._environment.map_size

    def size_on_disk(self) -> int:
        """Bytes the index takes on disk."""
        return sum(file.stat().st_blocks * 512 for file in self.path.iterdir())


class _Environment:
    """LMDB's environment of one directory, shared by all users of the process.

    A map that another process grew is adopted, one that is full is grown and the transaction repeated.
    """

    _shared: ClassVar[dict[tuple[int, int, int, bool], _Environment]] = {}
    _shared_lock: ClassVar[Lock] = Lock()

    def __init__(self, path: Path, map_size: int, reserve: Reserve | None, key: tuple[int, int, int, bool]) -> None:
        self._key = key
        self._data = os.fspath(path / "data.mdb")
        self._gate = _Gate()
        self._inside = local()
        self._users = 0
        disk.check_directories(path)
        disk.check_plain(path / "data.mdb", path / "lock.mdb", path / "checked")
        if os.path.exists(self._data) and os.path.getsize(self._data):
            self._refuse(look_over(path / "data.mdb", TABLES))
        self.stamp = Stamp(path / "data.mdb")
        if key[3]:
            self._open_to_read(path, map_size)
        else:
            _allocate_locks(path / "lock.mdb", reserve)
            self._open(path, map_size)
        status = os.stat(self._data)
        self._file = (status.st_dev, status.st_ino)
        self.stamp.found_sound(status)

    def _open(self, path: Path, map_size: int) -> None:
        self._env = lmdb.open(os.fspath(path), map_size=map_size, max_dbs=len(TABLES), max_readers=_READERS, mode=0o600)
        self._env.reader_check()
        self._look_through()
        # In a transaction that is given: `open_db` by itself begins one for each, and waits for another process's
        # with the interpreter's lock in its hand (py-lmdb 3.0).
        with self._env.begin(write=True) as txn:
            self.tables = {name: self._env.open_db(name, txn=txn) for name in TABLES}

    def _open_to_read(self, path: Path, map_size: int) -> None:
        self._env = lmdb.open(
            os.fspath(path), map_size=map_size, max_dbs=len(TABLES), readonly=True, lock=False, create=False
        )
        self._look_through()
        self.tables = {name: self._env.open_db(name, create=False) for name in TABLES}

    def _look_through(self) -> None:
        """Look at every page before LMDB believes one, unless a stamp says that it was done. CorruptError."""
        if self.stamp.is_fresh():
            return
        for _ in range(_META_TRIES):
            with open(self._data, "rb", buffering=0) as data, self.one_state(data.fileno()) as meta:
                wrong = look_through(data.fileno(), meta) if meta.last_page > 1 else None
            # Without locks a writer may have used the pages of this state for others meanwhile.
            if wrong is None or self.last_transaction() <= meta.transaction:
                break
        if wrong is not None:
            self._env.close()
        self._refuse(wrong)

    def _refuse(self, wrong: str | None) -> None:
        if wrong is not None:
            raise CorruptError(
                f"the index {os.path.dirname(self._data)} is damaged: {wrong}",
                hint="`ijfs fsck --repair` rebuilds it from the packs",
            )

    @contextlib.contextmanager
    def one_state(self, fd: int) -> Iterator[Meta]:
        """The meta page of a state whose pages stay as they are meanwhile, where there are locks; `fd` is the file."""
        for _ in range(_META_TRIES):
            with self.transaction(write=False) as txn:
                # The transaction keeps the pages of its own state from reuse, and of no other.
                meta = meta_of(read_head(fd), txn.id())
                if meta is not None:
                    yield meta
                    return
            time.sleep(_META_PAUSE_S)
        raise StorageError("the index changes too fast to be looked at", hint="try again")

    @classmethod
    def share(cls, path: Path, map_size: int, reserve: Reserve | None, *, read_only: bool) -> _Environment:
        """The process's environment of that directory, opened if it is not yet. OSError, CorruptError."""
        status = path.stat()
        # The pid keeps a forked child from using its parent's environment, which LMDB forbids.
        key = (os.getpid(), status.st_dev, status.st_ino, read_only)
        with cls._shared_lock:
            found = cls._shared.get(key)
            if found is None:
                found = cls._shared[key] = cls(path, map_size, reserve, key)
            found._users += 1
            return found

    def release(self) -> None:
        """One user less; the last closes it."""
        with self._shared_lock:
            self._users -= 1
            if self._users:
                return
            self._shared.pop(self._key, None)
            # Before anyone else may open it: LMDB opens a file once in a process, and py-lmdb refuses a second time.
            if self._key[0] == os.getpid():
                with self._gate.alone():
                    self._env.close()

    def is_replaced(self) -> bool:
        """Whether another file stands where this one was opened; one that is gone is in use until there is."""
        try:
            status = os.stat(self._data)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) != self._file

    def last_transaction(self) -> int:
        """The number of the newest one."""
        return int(self._env.info()["last_txnid"])

    def last_page(self) -> int:
        """The number of the last page in use."""
        return int(self._env.info()["last_pgno"])

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return int(self._env.stat()["psize"])

    @property
    def map_size(self) -> int:
        """Bytes of address space that may be filled."""
        return int(self._env.info()["map_size"])

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[lmdb.Transaction]:
        """One transaction; RuntimeError inside another one of the same thread."""
        if getattr(self._inside, "busy", False):
            raise RuntimeError("a transaction of the index inside another one of the same thread")
        with self._begin(write=write) as txn:
            self._inside.busy = True
            try:
                yield txn
            finally:
                self._inside.busy = False

    @contextlib.contextmanager
    def _begin(self, *, write: bool) -> Iterator[lmdb.Transaction]:
        while True:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._gate.shared())
                try:
                    txn = stack.enter_context(self._env.begin(write=write))
                except lmdb.MapResizedError:
                    txn = None
                if txn is not None:
                    yield txn
                    return
            with self._gate.alone():
                self._env.set_mapsize(0)

    def grow(self) -> None:
        """Double the map. StorageError."""
        with self._gate.alone():
            size = self.map_size
            grown = size + min(size, MAX_GROWTH)
            try:
                self._env.set_mapsize(grown)
            except lmdb.Error as error:
                raise StorageError(
                    f"the index cannot grow to {grown >> 20} MiB: {error}",
                    hint="raise the limit of address space (ulimit -v)",
                ) from error


def _may_be_full(error: OSError | lmdb.Error) -> bool:
    """Whether a full disk may be behind an error: LMDB says EIO where the disk took a part of a write."""
    if isinstance(error, OSError):
        return disk.is_full(error)
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO))


def _allocate_locks(file: Path, reserve: Reserve | None) -> None:
    """LMDB writes to its lock file through a map: a hole in it would be a signal on a full disk, not an error."""
    try:
        index_file.allocate_mapped(file, _READERS * index_file.READER_SIZE)
    except OSError as error:
        if not disk.is_full(error) or reserve is None or not reserve.give_up():
            raise
        index_file.allocate_mapped(file, _READERS * index_file.READER_SIZE)


class _Gate:
    """Many inside, or one alone: LMDB may move the map only while the process has no transaction."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._inside = 0
        self._alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._alone = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


def mark_whole(update: Update) -> None:
    """Say that the index holds all there is; a rebuild says so last."""
    update.put(META, _WHOLE, b"1")


def is_whole(view: View) -> bool:
    """Whether the index holds all there is: one that was lost, or is being rebuilt, does not."""
    return view.get(META, _WHOLE) is not None
