"""What keeps the bytes of an encrypted repository secret: how things are named, and how they are sealed.

Every id that is made, every frame that is written or read, and every row that holds a name goes through the `Crypt` of
its repository. That of a plain one (`PLAIN`) names by a hash without a key and seals nothing. docs/format.md
("Encryption") has the bytes and the reasons; `storage/key_files.py` has where the keys come from.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import (
    BASE_SIZE,
    HEADER,
    HEADER_SIZE,
    EncodedChunk,
    FrameKind,
    chunk_id,
    object_id,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE: Final = 32
_HEAD: Final = struct.Struct("<I12s12s")
"""Before a ciphertext: number of the sealing key, salt of the key that is made of it, nonce."""
_TAG: Final = 16
OVERHEAD: Final = _HEAD.size + _TAG
"""How much longer a sealed payload is."""
_BOUND: Final = struct.Struct("<BBBBI32s")
_OF_ONE_REPOSITORY: Final = frozenset((FrameKind.JOURNAL,))
"""Kinds of frames that mean something in their own repository alone; others may be copied to one with the same keys."""
_LOOSE: Final = b"loose bytes"
_MOST_KEYS: Final = 4096
"""Keys made of salts that are kept: one for each session whose frames are read."""
_MOST_SEALED: Final = 1 << 24
"""Frames under one salt: with nonces of 96 random bits, two of them share one with less than 2^-49."""
NAMES_TABLE: Final = b"refs"
LOG_TABLE: Final = b"reflog"


class KeyRing(NamedTuple):
    """The keys of a repository. `root` stays: ids, names and fingerprints are made with it. The newest of `sealing`
    (number → key) seals, the others only open."""

    root: bytes
    sealing: Mapping[int, bytes]

    @property
    def newest(self) -> int:
        """The number of the key that seals."""
        return max(self.sealing)

    @property
    def mark(self) -> bytes:
        """What tells its newest sealing key from others, and nothing of it: 8 bytes."""
        return blake3(b"ijfs 2026-12 mark", key=self.sealing[self.newest]).digest(length=8)

    @classmethod
    def made(cls) -> KeyRing:
        """A new one."""
        return cls(os.urandom(KEY_SIZE), {1: os.urandom(KEY_SIZE)})

    def with_new_key(self) -> KeyRing:
        """The same with one more key, which seals from now on."""
        return self._replace(sealing={**self.sealing, self.newest + 1: os.urandom(KEY_SIZE)})

    def only_newest(self) -> KeyRing:
        """The same without the keys that only open."""
        return self._replace(sealing={self.newest: self.sealing[self.newest]})


class Crypt:
    """That of a repository which is not encrypted."""

    id_key: bytes | None = None
    """For compiled loops: what keys the ids of chunks."""
    cut_key: int = 0
    """What is XORed to each word before a cut is looked for."""
    secret: bytes | None = None
    """The key of page fingerprints; None: the file `secret` has it."""
    mark: bytes | None = None
    """What tells one key ring from another, and nothing of its keys: 16 bytes."""
    seals: bool = False
    """Whether payloads are sealed."""
    overhead: int = 0
    """Bytes by which that makes them longer."""

    def renew(self) -> None:
        """Take over what changed in the keys meanwhile: before a session begins."""

    def chunk_id(self, plain: bytes | memoryview) -> bytes:
        """The id of a chunk with these plain bytes."""
        return chunk_id(plain)

    def object_id(self, kind: int, plain: bytes | memoryview) -> bytes:
        """The id of an object of this kind."""
        return object_id(kind, plain)

    def seal(self, kind: int, frame: EncodedChunk) -> EncodedChunk:
        """What is stored of a frame."""
        return frame

    def open(self, kind: int, frame: EncodedChunk) -> EncodedChunk:
        """A frame that `seal` made, as it was. CorruptError."""
        return frame

    def seal_bytes(self, plain: bytes, about: bytes) -> bytes:
        """Bytes that are no frame, as they are stored; `about`: what they belong to."""
        return plain

    def open_bytes(self, stored: bytes, about: bytes) -> bytes:
        """What `seal_bytes` made, as it was. CorruptError."""
        return stored

    def hides(self, table: bytes) -> bool:
        """Whether rows of a table of the index are sealed."""
        return False

    def row_key(self, table: bytes, key: bytes) -> bytes:
        """The key under which a row is stored."""
        return key

    def seal_row(self, table: bytes, key: bytes, value: bytes) -> tuple[bytes, bytes]:
        """A row as it is stored."""
        return key, value

    def open_row(self, table: bytes, stored: bytes, value: bytes) -> tuple[bytes, bytes]:
        """A stored row as it was. CorruptError."""
        return stored, value


PLAIN: Final = Crypt()


def open_payloads(crypt: Crypt, frames: Sequence[memoryview]) -> list[bytes | None]:
    """What chunks' frames hold, for compiled loops: the opened payloads, None for a frame that was altered."""
    return [_payload(crypt, frame) for frame in frames]


def _payload(crypt: Crypt, data: memoryview) -> bytes | None:
    if len(data) < HEADER_SIZE:
        return None
    _, kind, codec, depth, n_bases, _, plain, _, ident, _ = HEADER.unpack_from(data)
    start = HEADER_SIZE + n_bases * BASE_SIZE
    try:
        opened = crypt.open(
            kind, EncodedChunk(ident, codec, plain, data[start:], bytes(data[HEADER_SIZE:start]), depth)
        )
    except CorruptError:
        return None
    return bytes(opened.payload)


class Encrypted(Crypt):
    """That of an encrypted one. Safe to use from several threads."""

    seals = True
    overhead = OVERHEAD

    def __init__(self, ring: KeyRing, repository: bytes, renewed: Callable[[], KeyRing] | None = None) -> None:
        """`repository` is the id of the repository (16 bytes): rows and the journal hold for it alone. `renewed` gives
        the ring as it is now, after a rotation elsewhere."""
        self.ring = ring
        self._renewed = renewed
        self._repository = repository
        self._id_keys = {
            kind: self._derived(f"ijfs 2026-12 id {name}")
            for kind, name in FrameKind.NAMES.items()
            if kind != FrameKind.SIDECAR
        }
        self.id_key: bytes = self._id_keys[FrameKind.CHUNK]
        self.cut_key = int.from_bytes(self._derived("ijfs 2026-12 cuts")[:8], "little")
        self.secret = self._derived("ijfs 2026-12 page fingerprint")
        self._names = self._derived("ijfs 2026-12 names")
        self.mark = self._derived("ijfs 2026-12 mark")[:16]
        self._nonces = self._derived("ijfs 2026-12 nonces")
        self._keys: dict[tuple[int, bytes], AESGCM] = {}
        self._salt, self._left = os.urandom(12), _MOST_SEALED

    def _derived(self, context: str) -> bytes:
        return blake3(self.ring.root, derive_key_context=context).digest()

    def chunk_id(self, plain: bytes | memoryview) -> bytes:
        """Keyed, so that who knows a file cannot tell whether it is here."""
        return blake3(plain, key=self.id_key).digest()

    def object_id(self, kind: int, plain: bytes | memoryview) -> bytes:
        """The same, with a key of the kind."""
        return blake3(plain, key=self._id_keys[kind]).digest()

    def seal(self, kind: int, frame: EncodedChunk) -> EncodedChunk:
        """The payload sealed; header, id and bases are bound to it."""
        bound = self._bound(kind, frame)
        # An id says what the bytes are; that of a sidecar is what it belongs to.
        decides = bound if kind != FrameKind.SIDECAR else bound + frame.payload
        return frame._replace(payload=self._seal(frame.payload, bound, decides))

    def open(self, kind: int, frame: EncodedChunk) -> EncodedChunk:
        """CorruptError for one that was altered, or that another key sealed."""
        plain = self._open(frame.payload, self._bound(kind, frame))
        if plain is None:
            what = FrameKind.NAMES.get(kind, "frame")
            raise CorruptError(f"the {what} {frame.id.hex()[:12]} was altered, or another key sealed it")
        return frame._replace(payload=plain)

    def renew(self) -> None:
        """Have the ring as it is now. LockedRepositoryError where nothing opens it."""
        if self._renewed is not None:
            self.ring = self._renewed()

    def sealed_by(self, frame: EncodedChunk) -> int:
        """The number of the key that sealed a frame. CorruptError."""
        if len(frame.payload) < OVERHEAD:
            raise CorruptError(f"{frame.id.hex()[:12]} is too short to be sealed")
        return int(_HEAD.unpack_from(frame.payload)[0])

    def seal_bytes(self, plain: bytes, about: bytes) -> bytes:
        """Bound to what they belong to."""
        return self._seal(plain, _LOOSE + about, about + plain)

    def open_bytes(self, stored: bytes, about: bytes) -> bytes:
        """CorruptError for what was altered, or belongs to something else."""
        plain = self._open(stored, _LOOSE + about)
        if plain is None:
            raise CorruptError("bytes were altered, or another key sealed them")
        return plain

    def hides(self, table: bytes) -> bool:
        """Names, and who moved them when and why."""
        return table in (NAMES_TABLE, LOG_TABLE)

    def row_key(self, table: bytes, key: bytes) -> bytes:
        """Names are hashed; numbers of the log say nothing."""
        return blake3(key, key=self._names).digest() if table == NAMES_TABLE else key

    def seal_row(self, table: bytes, key: bytes, value: bytes) -> tuple[bytes, bytes]:
        """The name is kept with the value."""
        stored = self.row_key(table, key)
        plain = len(key).to_bytes(2, "little") + key + value
        return stored, self._seal(plain, self._repository + table + stored, table + plain)

    def open_row(self, table: bytes, stored: bytes, value: bytes) -> tuple[bytes, bytes]:
        """CorruptError for one that was altered or stood elsewhere."""
        plain = self._open(value, self._repository + table + stored)
        if plain is None:
            raise CorruptError("a row of the index was altered, or another key sealed it")
        end = 2 + int.from_bytes(plain[:2], "little")
        return plain[2:end], plain[end:]

    def _bound(self, kind: int, frame: EncodedChunk) -> bytes:
        n_bases = len(frame.bases) // BASE_SIZE
        bound = _BOUND.pack(kind, frame.codec, frame.depth, n_bases, frame.plain_size, frame.id) + frame.bases
        return self._repository + bound if kind in _OF_ONE_REPOSITORY else bound

    def _seal(self, plain: bytes | memoryview, bound: bytes, decides: bytes) -> bytes:
        """`decides` is another for other plain bytes."""
        number, salt = self.ring.newest, self._next_salt()
        # Hedged: a machine that was copied while it ran may draw the same random bytes twice.
        nonce = blake3(os.urandom(16) + decides, key=self._nonces).digest(length=12)
        cipher = self._key(number, salt)
        assert cipher is not None
        return _HEAD.pack(number, salt, nonce) + cipher.encrypt(nonce, plain, bound)

    def _next_salt(self) -> bytes:
        self._left -= 1
        if self._left <= 0:
            self._salt, self._left = os.urandom(12), _MOST_SEALED
        return self._salt

    def _open(self, sealed: bytes | memoryview, bound: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag

        if len(sealed) < OVERHEAD:
            return None
        number, salt, nonce = _HEAD.unpack_from(sealed)
        cipher = self._key(number, salt)
        try:
            return cipher.decrypt(nonce, memoryview(sealed)[_HEAD.size :], bound) if cipher is not None else None
        except InvalidTag:
            return None

    def _key(self, number: int, salt: bytes) -> AESGCM | None:
        """The key that one sealing key and a salt make; None where the ring lacks it."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        found = self._keys.get((number, salt))
        if found is None and number > self.ring.newest:
            self.renew()
        if found is None and number in self.ring.sealing:
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            found = AESGCM(blake3(b"ijfs 2026-12 frames" + salt, key=self.ring.sealing[number]).digest())
            self._keys[number, salt] = found
        return found
