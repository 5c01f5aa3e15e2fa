"""Who may call: keys by name, of which only hashes are kept, in `<repository>/serve/keys.json`.

A key is 32 random bytes, so a plain SHA-256 of it tells nothing; slow hashes are for words that people choose. The file
is read again when it has changed: a key that is removed is refused at once, without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from pathlib import Path

import msgspec

from ijfs.live.model.record_file import replace_file
from ijfs_engine.errors import ConflictError, CorruptError, UnknownNameError


def path_in(repo: Path) -> Path:
    """Where a repository's keys are."""
    return repo / "serve" / "keys.json"


PREFIX = "ijfs_"
"""So that a key is known for one where it should not be."""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One key. `digest`: SHA-256 of it, in hex. `sandboxes`: how many it may have at a time, paused ones included;
    `calls`: how many requests may be under way."""

    name: str
    digest: str
    made_ns: int
    sandboxes: int = 50
    calls: int = 200


class Keys:
    """All keys of a repository."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, list[KeyRecord]] = (0, [])

    def all(self) -> list[KeyRecord]:
        """By name. CorruptError."""
        try:
            changed = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return []
        if self._read[0] != changed:
            try:
                self._read = (changed, msgspec.json.decode(self._path.read_bytes(), type=list[KeyRecord]))
            except msgspec.DecodeError as error:
                raise CorruptError(
                    f"{self._path} is damaged: {error}", hint="remove it, and add the keys anew"
                ) from error
        return self._read[1]

    def add(self, name: str, *, sandboxes: int = 50, calls: int = 200) -> str:
        """A new key; it is shown this once. ConflictError where there is one of that name."""
        found = self.all()
        if any(record.name == name for record in found):
            raise ConflictError(f"there is a key `{name}` already", hint="remove it first, or choose another name")
        key = PREFIX + secrets.token_urlsafe(32)
        made = KeyRecord(name=name, digest=_digest(key), made_ns=time.time_ns(), sandboxes=sandboxes, calls=calls)
        self._write([*found, made])
        return key

    def remove(self, name: str) -> None:
        """Nobody gets in with it any more. UnknownNameError."""
        found = self.all()
        kept = [record for record in found if record.name != name]
        if len(kept) == len(found):
            raise UnknownNameError(f"there is no key `{name}`", hint="`ijfs key list` shows them")
        self._write(kept)

    def find(self, key: str) -> KeyRecord | None:
        """Whose key this is; None where it is nobody's."""
        digest = _digest(key)
        return next((record for record in self.all() if hmac.compare_digest(record.digest, digest)), None)

    def named(self, name: str) -> KeyRecord | None:
        """The key of this name, if it was not removed."""
        return next((record for record in self.all() if record.name == name), None)

    def _write(self, records: list[KeyRecord]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._path, msgspec.json.format(msgspec.json.encode(sorted(records, key=lambda r: r.name))))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
