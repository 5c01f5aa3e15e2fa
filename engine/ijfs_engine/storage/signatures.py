"""Who signed a snapshot: Ed25519 over its id, which stands for every byte and for all that it descends from.

Signatures lie beside the packs, a file for each snapshot, because an id cannot hold its own. `Repository.sign` and
`Repository.signers` call this; a push takes them along. docs/format.md ("Signatures") has the bytes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ijfs_engine.errors import CorruptError, IjfsError
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.records import ObjectId
from ijfs_engine.storage import disk
from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.key_files import missing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE: Final = "IJFS_SIGN_KEY"
"""A private key that signs each snapshot when it is made."""
_CONTEXT: Final = b"ijfs 2026-12 signed snapshot\0"
_MOST: Final = 1 << 20
_TYPE: Final = "ssh-ed25519"
_NAME: Final = re.compile(r"[0-9a-f]{64}")


class Signature(NamedTuple):
    """One: the public key (32 bytes), and when it was made by the signer's clock, which nothing vouches for."""

    public: bytes
    signature: bytes
    created_ns: int


_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, bytes, int]])


def sign(directory: RepositoryDirectory, ident: ObjectId, key: Path) -> bytes:
    """Add a signature of a snapshot, in the place of an older one by the same key; the public key. IjfsError,
    StorageError."""
    private = _private_key(key)
    public = private.public_key().public_bytes_raw()
    made = Signature(public, private.sign(_CONTEXT + ident), time.time_ns())
    put(directory, ident, [made])
    return public


def put(directory: RepositoryDirectory, ident: ObjectId, made: Iterable[Signature]) -> None:
    """Add signatures to those that are here. StorageError."""
    known = {one.public: one for one in read(directory, ident)}
    known.update({one.public: one for one in made})
    with disk.storage_errors("writing a signature"):
        path = _path(directory, ident)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        disk.write_file(path, directory.crypt.seal_bytes(encode(known.values()), _about(ident)))


def read(directory: RepositoryDirectory, ident: ObjectId) -> list[Signature]:
    """Those of a snapshot that are here, true or not; none where the file is damaged. StorageError."""
    with disk.storage_errors("reading a signature"):
        try:
            with disk.read_plain(_path(directory, ident)) as file:
                data = file.read(_MOST)
        except FileNotFoundError:
            return []
    with suppress(CorruptError):
        return decode(directory.crypt.open_bytes(data, _about(ident)))
    return []


def signed(directory: RepositoryDirectory) -> set[ObjectId]:
    """The snapshots that have any here. StorageError."""
    folder = directory.path / "signatures"
    with disk.storage_errors(f"listing {folder}"):
        names = os.listdir(folder) if folder.is_dir() else []
    return {bytes.fromhex(name) for name in names if _NAME.fullmatch(name)}


def encode(signatures: Iterable[Signature]) -> bytes:
    """As they are kept and sent."""
    return msgspec.msgpack.encode(sorted(signatures))


def decode(data: bytes) -> list[Signature]:
    """CorruptError for bytes that are none."""
    try:
        return [Signature(*one) for one in _decoder.decode(data)]
    except msgspec.MsgspecError as error:
        raise CorruptError(f"signatures cannot be parsed: {error}") from error


def true_signers(ident: ObjectId, signatures: Sequence[Signature]) -> list[Signature]:
    """Those that do sign this snapshot."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise missing("cryptography", "encrypt") from None
    found = []
    for one in signatures:
        with suppress(InvalidSignature, ValueError):
            Ed25519PublicKey.from_public_bytes(one.public).verify(one.signature, _CONTEXT + ident)
            found.append(one)
    return found


def read_allowed_signers(file: Path) -> dict[bytes, str]:
    """Public key → who, of a file as ssh's `allowed_signers`: names, then `ssh-ed25519` and the key, on each line.
    IjfsError, StorageError."""
    with disk.storage_errors(f"reading {file}"):
        lines = file.read_text(errors="replace").splitlines()
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if _TYPE not in words[1:-1]:
            raise IjfsError(f"line {number} of {file} is no signer: a name, {_TYPE} and a key are")
        found[_public_key(words[words.index(_TYPE) + 1], file, number)] = words[0]
    return found


def sign_as_set(directory: RepositoryDirectory, ident: ObjectId) -> None:
    """Sign a snapshot that was just made, where the environment says by which key. What fails leaves it unsigned: what
    is saved stays saved, a warning is logged (a command shows it), and `ijfs verify` tells."""
    key = os.environ.get(KEY_VARIABLE)
    if key:
        try:
            sign(directory, ident, Path(key))
        except IjfsError as error:
            import logging  # not on the way of saves that are not signed

            logging.getLogger("ijfs.sign").warning("%s is not signed: %s", ident.hex()[:12], error)


def drop_lost(directory: RepositoryDirectory, kept: Callable[[], Collection[ObjectId]]) -> None:
    """Remove signatures of what is neither listed nor remembered as removed: what is `kept`. That is asked for behind
    the look at what there is, since a snapshot is listed before it is signed. StorageError."""
    with disk.storage_errors("removing signatures"):
        folder = directory.path / "signatures"
        names = os.listdir(folder) if folder.is_dir() else []
        known = {ident.hex() for ident in kept()} if names else set()
        for name in names:
            if name not in known and len(name) == 2 * ID_SIZE:
                disk.unlink(folder / name)


def _path(directory: RepositoryDirectory, ident: ObjectId) -> Path:
    return directory.path / "signatures" / ident.hex()


def _about(ident: ObjectId) -> bytes:
    return b"signatures" + ident


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    except ImportError:
        raise missing("cryptography", "encrypt") from None
    with disk.storage_errors(f"reading {path}"):
        data = path.read_bytes()
    try:
        found = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = "`ssh-keygen -t ed25519 -N '' -f FILE` makes one; a passphrase cannot be asked for here"
        raise IjfsError(f"{path} is no private key of ssh that opens: {error}", hint=hint) from None
    if not isinstance(found, Ed25519PrivateKey):
        raise IjfsError(f"{path} is no Ed25519 key", hint="`ssh-keygen -t ed25519` makes one")
    return found


def _public_key(word: str, file: Path, number: int) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        found = load_ssh_public_key(f"{_TYPE} {word}".encode())
    except ValueError as error:
        raise IjfsError(f"line {number} of {file} has no public key: {error}") from None
    assert isinstance(found, Ed25519PublicKey)
    return found.public_bytes_raw()
