"""The index looked at by itself, before anything in it is believed: its pages, and the shape of every row.

fsck begins with `check_index`; only an index of which it says nothing is read through LMDB. `salvage` gets from a
damaged one what a rebuild cannot have from the packs: the names, where the journal is damaged, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ijfs_engine.errors import CorruptError, is_refusal
from ijfs_engine.format.chunk_codec import MAX_DEPTH
from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.frames import HEADER_SIZE, ID_SIZE, MAX_CHUNK, MAX_OBJECT, Codec, FrameKind
from ijfs_engine.format.place import NO_PLACE, Place
from ijfs_engine.storage import disk
from ijfs_engine.storage.elsewhere import FAR
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    CONDEMNED,
    META,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    REFLOG,
    REFS,
    REMOVED,
    SIDECARS,
    SNAPSHOTS,
    TABLES,
    Index,
)
from ijfs_engine.storage.index_file import newest_meta
from ijfs_engine.storage.index_pages import Pages, read_head
from ijfs_engine.storage.journal import RefMoved, decode_record
from ijfs_engine.storage.pack import DATA_PACK, SIDECAR_PACK
from ijfs_engine.storage.refs import is_ref_key

_MOST: Final = 20
"""Faults that are named; one damaged page may have thousands."""
_CODECS: Final = frozenset(value for name, value in vars(Codec).items() if not name.startswith("_"))
_KINDS: Final = FrameKind.LOCAL
_META_ROWS: Final = {b"whole": 1, b"journal": 16, b"next_pack": 8, b"epoch": 8}
_NAMES: Final = (SNAPSHOTS, REMOVED, REFS, REFLOG, META)
"""Tables that a rebuild takes from the journal."""

Rows = dict[bytes, dict[bytes, bytes]]
"""Rows by table."""


def check_index(index: Index) -> list[str]:
    """What is wrong with an index in itself, in sentences; the packs are not looked at. StorageError."""
    with index.pages() as pages:
        faults = list(_faults(pages, index.crypt))
    return faults[:_MOST]


def salvage(file: Path, crypt: Crypt) -> Rows:
    """The rows of names that can still be read in an index, whatever state it is in, opened. OSError where the
    system refuses to look."""
    found: Rows = {table: {} for table in _NAMES}
    try:
        with disk.read_plain(file) as data:
            meta = newest_meta(read_head(data.fileno()))
            if meta is None:
                return found
            pages = Pages(data.fileno(), meta)
            for table, tree in pages.tables().items():
                if table in found:
                    opened = (_opened(crypt, table, row.key, row.value) for row in pages.rows(tree, ""))
                    found[table] = dict(row for row in opened if row is not None and _SHAPES[table](*row))
    except OSError as error:
        if is_refusal(error):
            raise
    return found


def _faults(pages: Pages, crypt: Crypt) -> Iterator[str]:
    tables = pages.tables()
    yield from (f"the index has no table {name.decode()}" for name in TABLES if name not in tables)
    yield from (f"the index has a table {name!r}" for name in tables if name not in TABLES)
    based = 0
    for name, tree in tables.items():
        shown, fits, wrong = name.decode(errors="replace"), _SHAPES.get(name), 0
        for key, value, _ in pages.rows(tree, shown):
            row = _opened(crypt, name, key, value)
            if fits is not None and (row is None or not fits(*row)):
                wrong += 1
            elif name == CHUNKS and value[-1]:
                based += 1
        if wrong:
            yield f"{shown}: {wrong} rows have a shape that they cannot have"
    if not pages.faults:
        pages.check_free()
    yield from pages.faults
    if BASES in tables and tables[BASES].entries != based:
        yield f"bases: has {tables[BASES].entries} rows where {based} chunks are stored against others"


def _opened(crypt: Crypt, table: bytes, key: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """A row as the program knows it; None for one that was altered."""
    try:
        return crypt.open_row(table, key, value) if crypt.hides(table) else (key, value)
    except CorruptError:
        return None


def _chunk(key: bytes, value: bytes) -> bool:
    if len(key) != ID_SIZE or len(value) != len(NO_PLACE):
        return False
    place = Place.decode(value)
    return (
        place.tag in _CODECS
        and place.depth <= MAX_DEPTH
        and place.plain <= MAX_CHUNK
        and HEADER_SIZE <= place.span <= HEADER_SIZE + MAX_OBJECT
    )


def _object(key: bytes, value: bytes) -> bool:
    if len(key) != ID_SIZE or len(value) != len(NO_PLACE):
        return False
    place = Place.decode(value)
    return place.tag in _KINDS and not place.depth and HEADER_SIZE <= place.span <= HEADER_SIZE + MAX_OBJECT


def _sidecar(key: bytes, value: bytes) -> bool:
    return len(key) == ID_SIZE and len(value) == len(NO_PLACE) and Place.decode(value).tag == FrameKind.SIDECAR


def _ids(key: bytes, value: bytes) -> bool:
    return len(key) == ID_SIZE and bool(value) and len(value) % ID_SIZE == 0


def _removed(key: bytes, value: bytes) -> bool:
    return len(key) == ID_SIZE and len(value) % ID_SIZE == 1 and value[0] <= 1


def _number(key: bytes, value: bytes) -> bool:
    return len(key) == ID_SIZE and len(value) == 8


def _ref(key: bytes, value: bytes) -> bool:
    return len(value) == ID_SIZE and is_ref_key(key)


def _log(key: bytes, value: bytes) -> bool:
    try:
        _, record = decode_record(value)
    except CorruptError:
        return False
    return len(key) == 10 and isinstance(record, RefMoved)


def _pack(key: bytes, value: bytes) -> bool:
    if len(key) != PACK_KEY.size or len(value) != PACK_ROW.size:
        return False
    return PACK_KEY.unpack(key)[0] < FAR and PACK_ROW.unpack(value)[0] in (DATA_PACK, SIDECAR_PACK)


def _meta(key: bytes, value: bytes) -> bool:
    # Rows that a later program added are let be.
    sound = len(value) == _META_ROWS.get(key, len(value))
    return sound and (key != b"next_pack" or int.from_bytes(value, "little") < FAR - 1)


_SHAPES: Final[dict[bytes, Callable[[bytes, bytes], bool]]] = {
    CHUNKS: _chunk,
    OBJECTS: _object,
    BASES: _ids,
    SIDECARS: _sidecar,
    SNAPSHOTS: _number,
    REMOVED: _removed,
    REFS: _ref,
    REFLOG: _log,
    PACKS: _pack,
    CONDEMNED: _number,
    META: _meta,
}
