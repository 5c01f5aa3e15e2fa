"""Signatures of snapshots in an object store: `signatures/<snapshot id>`. A push sends them, a pull brings them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.bucket import Bucket, MissingObjectError
from ijfs_engine.remote.remote import Remote
from ijfs_engine.storage import signatures
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.signatures import Signature

_FOLDER = "signatures"


def send_signatures(directory: RepositoryDirectory, remote: Remote, idents: Sequence[ObjectId]) -> None:
    """Have a store know what is known here of snapshots, and of those listed there that have no signature there yet;
    what others added stays. RemoteError, StorageError."""
    for ident in dict.fromkeys([*idents, *_signed_since(directory, remote)]):
        if here := signatures.read(directory, ident):
            there = signatures_at(remote.bucket, ident, remote.crypt)
            if missing := set(here) - set(there):
                data = signatures.encode({*there, *missing})
                remote.bucket.put(_name(ident), remote.crypt.seal_bytes(data, ident))


def _signed_since(directory: RepositoryDirectory, remote: Remote) -> list[ObjectId]:
    here = signatures.signed(directory) & remote.log.view.listings.keys()
    there = {found.path for found in remote.bucket.list(_FOLDER)} if here else set()
    return sorted(ident for ident in here if _name(ident) not in there)


def bring_signatures(directory: RepositoryDirectory, remote: Remote, idents: Sequence[ObjectId]) -> None:
    """Have those of snapshots here. RemoteError, StorageError."""
    there = {found.path for found in remote.bucket.list(_FOLDER)} if idents else set()
    for ident in idents:
        if _name(ident) in there and (found := signatures_at(remote.bucket, ident, remote.crypt)):
            signatures.put(directory, ident, found)


def signatures_at(bucket: Bucket, ident: ObjectId, crypt: Crypt) -> list[Signature]:
    """What a store has, true or not; none where it was altered. RemoteError."""
    with suppress(MissingObjectError, CorruptError):
        return signatures.decode(crypt.open_bytes(bucket.get(_name(ident)), ident))
    return []


def _name(ident: ObjectId) -> str:
    return f"{_FOLDER}/{ident.hex()}"
