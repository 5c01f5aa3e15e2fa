"""One change of an object store's refs, as it is kept there: content-addressed, with parents, never changed.

A change names what it replaces (`over`), so that operations of hosts which did not know of each other can be applied in
any order that puts parents first: `view.py` does. docs/format.md ("Operations") has the fields.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.pack_index import opened, sealed

OperationId: TypeAlias = bytes
"""32 bytes: the hash of the operation."""


class Listed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A snapshot is in the tree: its record, and the ids of the packs that hold all it reaches, end to end."""

    id: bytes
    created_ns: int
    record: bytes
    packs: bytes
    over: tuple[OperationId, ...] = ()


class Unlisted(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A snapshot is in the tree no longer, as far as `over` had listed it."""

    id: bytes
    over: tuple[OperationId, ...]


class Moved(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """`branch/NAME` or `tag/NAME` is at `new` (None: nowhere), in place of what `over` had said."""

    name: str
    new: bytes | None
    over: tuple[OperationId, ...] = ()


Change: TypeAlias = Listed | Unlisted | Moved


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """`since` are the operations from the nearest one with a manifest to the last parent: who has none of them reads
    the manifest and these, at once. `manifest` says whether this one has one itself."""

    parents: tuple[OperationId, ...]
    time_ns: int
    who: str
    host: str
    why: str
    changes: tuple[Change, ...]
    since: tuple[OperationId, ...] = ()
    manifest: bool = False

    def moves(self) -> dict[str, bytes | None]:
        """Refs that it moved, and where to."""
        return {one.name: one.new for one in self.changes if isinstance(one, Moved)}

    def listed(self) -> list[bytes]:
        """Snapshots that it listed."""
        return [one.id for one in self.changes if isinstance(one, Listed)]

    def unlisted(self) -> list[bytes]:
        """Snapshots that it took off the list."""
        return [one.id for one in self.changes if isinstance(one, Unlisted)]


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Operation)


def encode_operation(operation: Operation, crypt: Crypt = PLAIN) -> tuple[OperationId, bytes]:
    """Its id and its frame."""
    plain = _encoder.encode(operation)
    return crypt.object_id(FrameKind.OPERATION, plain), sealed(FrameKind.OPERATION, plain, crypt)


def decode_operation(data: bytes, crypt: Crypt = PLAIN) -> Operation:
    """From its frame. CorruptError."""
    try:
        return _decoder.decode(opened(FrameKind.OPERATION, data, crypt))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptError(f"an operation cannot be parsed: {error}") from error
