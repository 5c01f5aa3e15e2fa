"""What a tree in an object store is after some operations: its refs and its snapshots. Nothing here does input or
output.

A ref is a register with all values that no later operation replaced: one, unless hosts moved it apart. A snapshot is
listed as long as one operation that listed it was not taken back. Two views merge by their histories alone: what one
has and the other does not was either replaced there (its operation is in the other's history) or is not known there
yet. So merging is associative, commutative and idempotent, and no host needs to be asked
(tests/engine/test_remote_view.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import ID_SIZE, FrameKind
from ijfs_engine.format.pack_index import PACK_ID_SIZE, opened, sealed
from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.operation import Listed, Moved, Operation, OperationId, Unlisted


class Value(NamedTuple):
    """Where an operation left a ref, and on which host."""

    id: ObjectId
    host: str


class Listing(NamedTuple):
    """A snapshot of the tree: its record, and what operations that listed it said of its packs (ids end to end)."""

    created_ns: int
    record: bytes
    packs: Mapping[OperationId, bytes]

    def pack_ids(self) -> set[bytes]:
        """The packs that hold what it reaches."""
        return {ident for packs in self.packs.values() for ident in split_packs(packs)}


class View(NamedTuple):
    """The state after the operations of `history`."""

    history: frozenset[OperationId]
    refs: Mapping[str, Mapping[OperationId, Value]]
    listings: Mapping[ObjectId, Listing]

    def packs(self) -> set[bytes]:
        """The packs that anything listed needs."""
        return {ident for listing in self.listings.values() for ident in listing.pack_ids()}


_V = TypeVar("_V")

EMPTY = View(frozenset(), {}, {})


def split_packs(packs: bytes) -> list[bytes]:
    """Ids of packs that stand end to end."""
    return [packs[at : at + PACK_ID_SIZE] for at in range(0, len(packs), PACK_ID_SIZE)]


def applied(view: View, ident: OperationId, operation: Operation) -> View:
    """The view with one more operation, whose parents it has. CorruptError where it has not."""
    if ident in view.history:
        return view
    if not view.history.issuperset(operation.parents):
        raise CorruptError(f"the operation {ident.hex()[:12]} comes before its parents")
    refs, listings = dict(view.refs), dict(view.listings)
    for change in operation.changes:
        match change:
            case Moved():
                values = {key: at for key, at in refs.get(change.name, {}).items() if key not in change.over}
                if change.new is not None:
                    values[ident] = Value(change.new, operation.host)
                _set(refs, change.name, values)
            case Listed():
                old = listings.get(change.id)
                packs = _without(old, change.over)
                listings[change.id] = Listing(change.created_ns, change.record, {**packs, ident: change.packs})
            case Unlisted():
                old = listings.get(change.id)
                packs = _without(old, change.over)
                _set(listings, change.id, old._replace(packs=packs) if old is not None and packs else None)
    return View(view.history | {ident}, refs, listings)


def _without(listing: Listing | None, over: tuple[OperationId, ...]) -> dict[OperationId, bytes]:
    return {} if listing is None else {key: packs for key, packs in listing.packs.items() if key not in over}


def _set(table: dict, key: object, value: object) -> None:  # type: ignore[type-arg]
    if value:
        table[key] = value
    else:
        table.pop(key, None)


def merged(one: View, other: View) -> View:
    """What both know together."""
    if one.history >= other.history:
        return one
    if other.history >= one.history:
        return other

    def kept(mine: Mapping[OperationId, _V], theirs: Mapping[OperationId, _V]) -> dict[OperationId, _V]:
        found = {key: value for key, value in mine.items() if key in theirs or key not in other.history}
        found.update({key: value for key, value in theirs.items() if key in mine or key not in one.history})
        return found

    refs: dict[str, Mapping[OperationId, Value]] = {}
    for name in one.refs.keys() | other.refs.keys():
        _set(refs, name, kept(one.refs.get(name, {}), other.refs.get(name, {})))
    listings: dict[ObjectId, Listing] = {}
    for ident in one.listings.keys() | other.listings.keys():
        a, b = one.listings.get(ident), other.listings.get(ident)
        packs = kept(a.packs if a else {}, b.packs if b else {})
        known = a or b
        assert known is not None
        _set(listings, ident, known._replace(packs=packs) if packs else None)
    return View(one.history | other.history, refs, listings)


def shown_refs(view: View) -> dict[str, ObjectId]:
    """Every ref by the name that people see: of one that moved apart, the value of the operation with the smallest id
    keeps the name, and the others stand beside it as `NAME@HOST` (`NAME@HOST.2`, …)."""
    found = {name: _first(values).id for name, values in view.refs.items()}
    return {**found, **{beside: ident for beside, (_, ident) in apart_refs(view).items()}}


def apart_refs(view: View) -> dict[str, tuple[str, ObjectId]]:
    """The names of values that moved apart and have none of their own: name → (the ref that has them, where)."""
    found: dict[str, tuple[str, ObjectId]] = {}
    for name, values in sorted(view.refs.items()):
        known = {_first(values).id}
        for key in sorted(values):
            value = values[key]
            if value.id not in known:
                known.add(value.id)
                found[_free({**view.refs, **found}, f"{name}@{value.host}")] = (name, value.id)
    return found


def settled(view: View) -> list[Moved]:
    """The changes that give each value that moved apart the name that it is shown by: then the ref can move on without
    taking that name away."""
    apart = apart_refs(view)
    bases = sorted({name for name, _ in apart.values()})
    made = [Moved(beside, ident) for beside, (_, ident) in sorted(apart.items())]
    return [*made, *(Moved(name, _first(view.refs[name]).id, tuple(view.refs[name])) for name in bases)]


def _first(values: Mapping[OperationId, Value]) -> Value:
    return values[min(values)]


def _free(taken: Mapping[str, object], wish: str) -> str:
    number = 1
    name = wish
    while name in taken:
        number += 1
        name = f"{wish}.{number}"
    return name


class _Stored(msgspec.Struct, array_like=True):
    history: bytes
    refs: dict[str, list[tuple[bytes, bytes, str]]]
    packs: bytes
    listings: list[tuple[bytes, int, bytes, list[tuple[bytes, list[int]]]]]


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(_Stored)


def encode_view(view: View, crypt: Crypt = PLAIN) -> bytes:
    """A manifest: the frame. Packs are named by their number in one list, since siblings have most in common."""
    packs = sorted(view.packs())
    number = {ident: at for at, ident in enumerate(packs)}
    listings = [
        (ident, one.created_ns, one.record, [(key, [number[p] for p in split_packs(one.packs[key])])
                                             for key in sorted(one.packs)])
        for ident, one in sorted(view.listings.items())
    ]  # fmt: skip
    refs = {name: [(key, *values[key]) for key in sorted(values)] for name, values in view.refs.items()}
    stored = _Stored(b"".join(sorted(view.history)), refs, b"".join(packs), listings)
    return sealed(FrameKind.MANIFEST, _encoder.encode(stored), crypt)


def decode_view(data: bytes, crypt: Crypt = PLAIN) -> View:
    """The inverse. CorruptError."""
    try:
        stored = _decoder.decode(opened(FrameKind.MANIFEST, data, crypt))
        packs = split_packs(stored.packs)
        listings = {
            ident: Listing(at, record, {key: b"".join(packs[n] for n in numbers) for key, numbers in by})
            for ident, at, record, by in stored.listings
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError) as error:
        raise CorruptError(f"a manifest cannot be parsed: {error}") from error
    history = frozenset(stored.history[at : at + ID_SIZE] for at in range(0, len(stored.history), ID_SIZE))
    refs = {name: {key: Value(at, host) for key, at, host in values} for name, values in stored.refs.items()}
    return View(history, refs, listings)
