"""Reading much at once: a request for many chunks, most of which are wanted whole and once.

Such chunks go from the pack straight to where they belong and not through the cache: an image of gigabytes would only
push out of it what others come back to. `ChunkReader.fill` calls it for `StoredFile`; the work is done by
_native/read_plan.pyx and _native/bulk.pyx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ijfs_engine._native.bulk import BulkRead
from ijfs_engine._native.unpack import Unpacker
from ijfs_engine.errors import CorruptError
from ijfs_engine.format.chunk_codec import MAX_DEPTH, Plain
from ijfs_engine.format.crypt import Crypt, open_payloads
from ijfs_engine.storage.object_store import READ_GAP, Store
from ijfs_engine.util.byte_lru import ByteLru
from ijfs_engine.util.io_wait import simulate_latency
from ijfs_engine.util.per_thread import PerThread

_LONGEST: Final = 1 << 20
"""One read: what it unpacks to is checked and copied while it is in the cache of the core. The store's own limit, which
is four times as long, only bounds its memory."""

FetchBases = Callable[[Sequence[bytes], int], Sequence[Plain]]
"""Plain bytes of base chunks in the order asked, for a chunk of this depth."""
FetchOne = Callable[[bytes], Plain]
"""Plain bytes of one chunk, or the CorruptError that says what is wrong with it."""


_unpacker = PerThread(Unpacker)


def new_read(crypt: Crypt) -> BulkRead:
    """An empty request, for this thread alone, to a store with this `crypt`."""
    return BulkRead(_unpacker.value, partial(open_payloads, crypt) if crypt.seals else None, crypt.id_key)


def fill(
    what: BulkRead, store: Store, cache: ByteLru[Plain], bases: FetchBases, one: FetchOne, delay_s: float = 0.0
) -> None:
    """Get and check every chunk that is wanted. CorruptError, StorageError; the buffers then hold anything.

    Chunks of which a part was wanted are left in the cache.
    """
    wanted = what.wanted()
    known = cache.get_many(ident for _, ident in wanted)
    for number, ident in wanted if known else ():
        if ident in known:
            _use(what, number, known[ident])
    if len(known) < len(wanted):
        simulate_latency(delay_s)
        _read(what, store, bases)
        if what.unplaced():  # gc has moved them since their leaf was told where they are
            _read(what, store, bases)
        for ident, plain in what.kept():
            cache.put(ident, plain, len(plain))
        for number, ident in what.wanted():
            _use(what, number, one(ident))


def whole(
    ids: Sequence[bytes], below: int, store: Store, bases: FetchBases, delay_s: float = 0.0
) -> list[tuple[bytes, bytes]]:
    """(id, plain bytes) of these chunks, without those that are damaged or not less deep than `below`. StorageError."""
    what = new_read(store.crypt)
    for ident in ids:
        what.add_whole(ident)
    simulate_latency(delay_s)
    _read(what, store, bases, below)
    return what.kept()


def _read(what: BulkRead, store: Store, bases: FetchBases, below: int = 256) -> None:
    if unplaced := what.unplaced():
        rows = store.chunk_rows([ident for _, ident in unplaced])
        for (number, _), row in zip(unplaced, rows, strict=True):
            what.place(number, row)
    store.read_planned(what, what.schedule(READ_GAP, _LONGEST, below))
    if based := what.based():
        _add_bases(what, based, bases)


def _add_bases(what: BulkRead, based: list[tuple[int, int]], fetch: FetchBases) -> None:
    """Complete the differences to chunks that are not wanted themselves; if those cannot be had, they stay wanted."""
    for depth in range(1, MAX_DEPTH + 1):
        those = [number for number, at in based if at == depth]
        ids = list({ident: None for number in those for ident in what.lacking(number)})
        with suppress(CorruptError):
            plains = dict(zip(ids, fetch(ids, depth) if ids else (), strict=True))
            for number in those:
                what.add_bases(number, plains)


def _use(what: BulkRead, number: int, plain: Plain) -> None:
    try:
        what.know(number, plain)
    except ValueError as error:
        raise CorruptError(str(error)) from error
