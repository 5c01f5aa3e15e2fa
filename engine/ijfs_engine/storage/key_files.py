"""The ways to open an encrypted repository: files in `keys/`, each with the key ring wrapped by a passphrase or for
recipients.

`storage/unlocking.py` tries them; the verbs of keys (`maintenance/keys.py`) write them. docs/format.md ("Encryption")
has the bytes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from blake3 import blake3

from ijfs_engine.errors import CorruptError, IjfsError
from ijfs_engine.format.crypt import KEY_SIZE, KeyRing
from ijfs_engine.storage import disk

PASSPHRASE: Final = 1
"""`how` of a file: Argon2id of a passphrase."""
RECIPIENTS: Final = 2
"""An age file."""
SUFFIX: Final = ".key"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}")
_VERSION: Final = 1
_NONCE: Final = 12
_CHECK: Final = 8
MEMORY_KIB: Final = 64 << 10
"""RFC 9106's second choice, for machines that have no 2 GiB to spare: 64 MiB, 3 passes, 4 lanes; 0.1 s here."""
_PASSES: Final = 3
_LANES: Final = 4
_MOST_KIB: Final = 4 << 20
"""What a lying file can make a reader allocate, in KiB…"""
_MOST_PASSES: Final = 64
"""…and how long it can keep it busy."""


class MissingLibraryError(IjfsError):
    """A library that encryption needs is not installed."""


class KeyFile(msgspec.Struct, frozen=True, array_like=True):
    """One way in. `parameters`: of a passphrase salt, memory in KiB, passes, lanes; of recipients their public keys.
    `newest` and `mark`: number and mark of the newest sealing key in it, so that who kept another ring knows."""

    version: int
    how: int
    name: str
    created_ns: int
    parameters: tuple[Any, ...]
    newest: int
    mark: bytes
    wrapped: bytes
    check: bytes = b""
    """Of all that is before it; empty in files from before there was one."""

    def is_of(self, ring: KeyRing) -> bool:
        """Whether a ring is the one that is wrapped here."""
        return (ring.newest, ring.mark) == (self.newest, self.mark)


class _StoredRing(msgspec.Struct, frozen=True, array_like=True):
    version: int
    root: bytes
    sealing: dict[int, bytes]


_decoder = msgspec.msgpack.Decoder(KeyFile)
_ring_decoder = msgspec.msgpack.Decoder(_StoredRing)


class Ways(NamedTuple):
    """The files of one repository, and the names of those that are damaged. `doubtful`: what a damaged one says that
    can be parsed, which may open the repository yet where no sound one is left."""

    files: list[KeyFile]
    damaged: list[str]
    doubtful: list[KeyFile]


def read_key_files(directory: Path) -> Ways:
    """All of them, by name. StorageError."""
    ways = Ways([], [], [])
    with disk.storage_errors(f"reading {directory}"):
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            with disk.read_plain(path) as file:
                _sort_in(ways, path.name, file.read(1 << 20))
    return ways


def _sort_in(ways: Ways, name: str, data: bytes) -> None:
    try:
        found = decode_key_file(data)
    except CorruptError:
        ways.damaged.append(name)
        return
    if found.check in (b"", _check_of(found)):
        ways.files.append(found)
    else:
        ways.damaged.append(name)
        ways.doubtful.append(found)


def decode_key_file(data: bytes) -> KeyFile:
    """CorruptError for bytes that are none."""
    try:
        found = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptError(f"a key file cannot be parsed: {error}") from error
    if found.version != _VERSION or found.how not in (PASSPHRASE, RECIPIENTS) or not _NAME.fullmatch(found.name):
        raise CorruptError("a key file of another kind")
    return found


def encode_key_file(file: KeyFile) -> bytes:
    """As it is kept."""
    return msgspec.msgpack.encode(file)


def _checked_file(how: int, name: str, parameters: tuple[Any, ...], ring: KeyRing, wrapped: bytes) -> KeyFile:
    """A new one, with its check: without the passphrase nothing else tells that the wrapped bytes have changed."""
    file = KeyFile(_VERSION, how, name, time.time_ns(), parameters, ring.newest, ring.mark, wrapped)
    return msgspec.structs.replace(file, check=_check_of(file))


def _check_of(file: KeyFile) -> bytes:
    fields = msgspec.structs.astuple(file)[:-1]
    return blake3(msgspec.msgpack.encode(fields)).digest(_CHECK)


def write_key_file(directory: Path, file: KeyFile) -> None:
    """Durably, in the place of one of the same name. StorageError."""
    with disk.storage_errors(f"writing {directory}"):
        disk.write_file(path_of(directory, file.name), encode_key_file(file))


def remove_key_file(directory: Path, name: str) -> None:
    """Durably. StorageError."""
    with disk.storage_errors(f"writing {directory}"):
        disk.unlink(path_of(directory, name))
        disk.fsync_dir(directory)


def path_of(directory: Path, name: str) -> Path:
    """Where the key of a name is. IjfsError for what cannot be one."""
    if not _NAME.fullmatch(name):
        raise IjfsError(f"{name!r} cannot be the name of a key", hint="use letters, digits and ._-+@, at most 100")
    return directory / (name + SUFFIX)


def wrap_for_passphrase(ring: KeyRing, name: str, passphrase: str) -> KeyFile:
    """A way in for who knows a passphrase. IjfsError for an empty one."""
    if not passphrase:
        raise IjfsError("an empty passphrase protects nothing", hint="give one, or use --recipient")
    parameters = (os.urandom(16), MEMORY_KIB, _PASSES, _LANES)
    nonce = os.urandom(_NONCE)
    bound = _bound(parameters, ring.newest, ring.mark)
    sealed = nonce + _aead(_passphrase_key(passphrase, parameters)).encrypt(nonce, encode_ring(ring), bound)
    return _checked_file(PASSPHRASE, name, parameters, ring, sealed)


def open_with_passphrase(file: KeyFile, passphrase: str) -> KeyRing | None:
    """The ring; None where the passphrase is another one. Takes as long either way. CorruptError."""
    from cryptography.exceptions import InvalidTag

    parameters = _checked(file.parameters)
    key = _passphrase_key(passphrase, parameters)
    try:
        plain = _aead(key).decrypt(
            file.wrapped[:_NONCE], file.wrapped[_NONCE:], _bound(parameters, file.newest, file.mark)
        )
    except (InvalidTag, ValueError):
        return None
    return decode_ring(plain)


def wrap_for_recipients(ring: KeyRing, name: str, recipients: Sequence[str]) -> KeyFile:
    """A way in for who has the private key of one of some `age1…` or `ssh-…` public keys. IjfsError."""
    pyrage = _pyrage()
    try:
        keys = [_recipient(pyrage, one) for one in recipients]
    except (pyrage.RecipientError, ValueError) as error:
        raise IjfsError(
            f"no recipient of age: {error}", hint="give an age1… or ssh-ed25519/ssh-rsa public key"
        ) from None
    sealed = pyrage.encrypt(encode_ring(ring), keys)
    return _checked_file(RECIPIENTS, name, tuple(recipients), ring, sealed)


def open_with_identity(file: KeyFile, identity: Path) -> KeyRing | None:
    """The ring, with a file of age or ssh that holds a private key; None where it is none of the recipients'.
    IjfsError, StorageError."""
    pyrage = _pyrage()
    with disk.storage_errors(f"reading {identity}"):
        text = identity.read_bytes()
    try:
        plain = pyrage.decrypt(file.wrapped, _identities(pyrage, text))
    except pyrage.DecryptError:
        return None
    except (pyrage.IdentityError, ValueError) as error:
        raise IjfsError(f"{identity} holds no private key of age or ssh: {error}") from None
    return decode_ring(bytes(plain))


def rewrapped(file: KeyFile, ring: KeyRing, passphrase: str | None) -> KeyFile | None:
    """The same way in to another ring; None where only who knows its passphrase could say so."""
    if file.how == RECIPIENTS:
        return wrap_for_recipients(ring, file.name, [str(one) for one in file.parameters])
    return wrap_for_passphrase(ring, file.name, passphrase) if passphrase is not None else None


def encode_ring(ring: KeyRing) -> bytes:
    """A ring as it is wrapped."""
    return msgspec.msgpack.encode(_StoredRing(_VERSION, ring.root, dict(ring.sealing)))


def decode_ring(plain: bytes) -> KeyRing:
    """CorruptError for bytes that are none."""
    try:
        stored = _ring_decoder.decode(plain)
    except msgspec.MsgspecError as error:
        raise CorruptError(f"a key ring cannot be parsed: {error}") from error
    if (
        stored.version != _VERSION
        or not stored.sealing
        or {len(stored.root), *map(len, stored.sealing.values())} != {KEY_SIZE}
    ):
        raise CorruptError("a key ring of another kind")
    return KeyRing(stored.root, stored.sealing)


def _checked(parameters: Sequence[Any]) -> tuple[bytes, int, int, int]:
    match list(parameters):
        case [bytes(salt), int(memory), int(passes), int(lanes)]:
            fits = 8 * lanes <= memory <= _MOST_KIB and 1 <= passes <= _MOST_PASSES and 1 <= lanes <= 64
            if fits and len(salt) >= 16:
                return salt, memory, passes, lanes
    raise CorruptError("a key file with parameters that cannot be")


def _bound(parameters: Sequence[Any], newest: int, mark: bytes) -> bytes:
    return msgspec.msgpack.encode([PASSPHRASE, list(parameters), newest, mark])


def _passphrase_key(passphrase: str, parameters: tuple[bytes, int, int, int]) -> bytes:
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
    except ImportError:
        raise missing("cryptography", "encrypt") from None
    salt, memory, passes, lanes = parameters
    kdf = Argon2id(salt=salt, length=KEY_SIZE, iterations=passes, lanes=lanes, memory_cost=memory)
    return kdf.derive(passphrase.encode(errors="surrogateescape"))


def _aead(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError:
        raise missing("pyrage", "age") from None
    return pyrage


def missing(library: str, extra: str) -> MissingLibraryError:
    """That a library is not installed."""
    return MissingLibraryError(f"this needs {library}, which is not installed", hint=f"pip install 'ijfs[{extra}]'")


def _recipient(pyrage: Any, text: str) -> Any:
    kind = pyrage.x25519 if text.startswith("age1") else pyrage.ssh
    return kind.Recipient.from_str(text)


def _identities(pyrage: Any, text: bytes) -> list[Any]:
    """Of a file of age (a line each, comments begin with #), or of ssh's private key."""
    if b"PRIVATE KEY" in text:
        return [pyrage.ssh.Identity.from_buffer(text)]
    lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
    return [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]


def describe_key(file: KeyFile) -> Mapping[str, Any]:
    """What is shown of a way in."""
    kind = "passphrase" if file.how == PASSPHRASE else "recipients"
    recipients = [str(one) for one in file.parameters] if file.how == RECIPIENTS else []
    return {"name": file.name, "kind": kind, "recipients": recipients, "created_ns": file.created_ns}
