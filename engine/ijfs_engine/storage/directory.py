"""Where things are in a repository's directory, and its format version: the first thing that is read.

`Repository.init` and `Repository.open` find it; every other module gets paths from here.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from operator import ne
from pathlib import Path
from typing import Final

from ijfs_engine.errors import (
    CorruptError,
    IjfsError,
    NoRepositoryError,
    StorageError,
    UnknownFormatError,
    is_refusal,
)
from ijfs_engine.format.crypt import PLAIN, Crypt, Encrypted, KeyRing
from ijfs_engine.storage import disk
from ijfs_engine.storage.pack import PACK_HEADER_SIZE, decode_pack_header, pack_files
from ijfs_engine.storage.reserve import Reserve
from ijfs_engine.storage.sealed_content import has_keys, is_sealed, sealed_journal

FORMAT_VERSION: Final = 1
ENCRYPTED_VERSION: Final = 2
"""Of repositories that have features."""
ENCRYPTED: Final = b"encrypted"
_MAGIC: Final = b"ijfs repository\n"
_FORMAT: Final = re.compile(
    rb"ijfs repository\nversion: (\d{1,9})\nid: ([0-9a-f]{32})\n(?:features: ([a-z ]{0,200})\n)?"
)
_DIRECTORIES: Final = ("index", "packs", "sessions", "pins", "locks")
_OTHERS: Final = ("keys", "signatures", "remotes", "live", "bases", "deployments", "serve")
"""Directories that are made by who needs them, here and in the layers above."""
_FILES: Final = ("journal", "secret", "reserve", "locks/gc", "index/data.mdb", "index/lock.mdb", "index/checked")


class RepositoryDirectory:
    """The paths of one repository and its 16-byte id."""

    def __init__(
        self, path: Path, ident: bytes, read_only_reason: StorageError | None = None, crypt: Crypt = PLAIN
    ) -> None:
        self.path = path
        self.id = ident
        self.read_only_reason = read_only_reason
        """Why it can only be read; None where it can be written."""
        self.crypt = crypt
        """How its bytes are kept secret."""

    @classmethod
    def create(cls, path: Path, ring: KeyRing | None = None) -> RepositoryDirectory:
        """Make the directories; `seal` then makes it a repository, with a `ring` an encrypted one: the caller puts a
        way into `keys` before. IjfsError if something is there, StorageError."""
        from ijfs_engine.util.owners import make_directories

        _check_utf8(path)
        with disk.storage_errors(f"making a repository at {path}"):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise IjfsError(f"{path} is not an empty directory", hint="name a new directory, or an empty one")
            make_directories(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
            # Snapshots hold memory, and memory holds secrets.
            path.chmod(0o700)
            for name in _DIRECTORIES:
                (path / name).mkdir(mode=0o700)
            # Here already, so that who only looks can hold it and writes nothing.
            (path / "locks" / "gc").touch(mode=0o600)
            if ring is not None:
                (path / "keys").mkdir(mode=0o700)
        ident = os.urandom(16)
        return cls(path.resolve(), ident, None, PLAIN if ring is None else _crypt(path.resolve(), ident, ring))

    def seal(self) -> None:
        """Write the format file, last: a repository that was only half made is none."""
        text = f"ijfs repository\nversion: {self.version}\nid: {self.id.hex()}\n"
        if self.crypt.seals:
            text += f"features: {ENCRYPTED.decode()}\n"
        with disk.storage_errors(f"making a repository at {self.path}"):
            disk.write_file(self.path / "format", text.encode())

    @classmethod
    def find(cls, path: Path, *, damaged: bool = False) -> RepositoryDirectory:
        """Recognise a repository; with `damaged`, also by its packs where the file `format` is lost or damaged.

        NoRepositoryError, UnknownFormatError, CorruptError, StorageError."""
        _check_utf8(path)
        disk.check_plain(path / "format")
        try:
            ident, encrypted = _read_format(path)
        except (NoRepositoryError, CorruptError):
            found = id_of_packs(path) if damaged else None
            if found is None:
                raise
            ident, encrypted = found, has_keys(path)
        if not os.access(path, os.R_OK | os.X_OK):
            raise StorageError(f"{path} is not yours to read", hint="check who owns the repository and its permissions")
        _check_kinds(path)
        if damaged:
            # A repair would count a pack behind a link as lost.
            disk.check_plain(*(file for _, file in pack_files(path / "packs")))
            # One damaged digit of the id in `format` is no reason to call all packs those of another repository.
            ident = id_of_packs(path) or ident
            encrypted = _is_encrypted(path, ident, encrypted)
        elif not encrypted:
            _check_plain_content(path, ident)
        crypt = _unlocked(path.resolve(), ident) if encrypted else PLAIN
        return cls(path.resolve(), ident, _read_only_reason(path), crypt)

    def is_sealed(self) -> bool:
        """Whether the file `format` is there and says what it should. StorageError."""
        try:
            return _read_format(self.path) == (self.id, self.crypt.seals)
        except (NoRepositoryError, CorruptError):
            return False

    def make_missing(self) -> None:
        """Make the directories that are missing, unless the repository can only be read. StorageError."""
        if self.read_only_reason is not None:
            return
        with disk.storage_errors(f"opening the repository {self.path}"):
            for name in _DIRECTORIES:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)

    def check_writable(self) -> None:
        """Raise `read_only_reason`, if there is one. Whatever changes the repository asks before it begins."""
        if self.read_only_reason is not None:
            raise self.read_only_reason

    @property
    def version(self) -> int:
        """Of its format."""
        return ENCRYPTED_VERSION if self.crypt.seals else FORMAT_VERSION

    @property
    def keys(self) -> Path:
        """The ways to open an encrypted one."""
        return self.path / "keys"

    @property
    def index(self) -> Path:
        """LMDB's directory."""
        return self.path / "index"

    @property
    def has_index(self) -> bool:
        """Whether there is one, whatever is in it. StorageError where the system refuses to look."""
        with disk.storage_errors(f"opening the repository {self.path}"):
            try:
                (self.index / "data.mdb").lstat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    @property
    def packs(self) -> Path:
        """The pack files."""
        return self.path / "packs"

    @property
    def journal(self) -> Path:
        """The log of refs and snapshots."""
        return self.path / "journal"

    @property
    def sessions(self) -> Path:
        """One flocked file per running session."""
        return self.path / "sessions"

    @property
    def pins(self) -> Path:
        """One flocked file per pinned snapshot and owner."""
        return self.path / "pins"

    @property
    def reserve(self) -> Reserve:
        """Room that is given up on a full disk."""
        return Reserve(self.path / "reserve")

    @property
    def gc_lock(self) -> Path:
        """Held by gc, and by fsck while it repairs."""
        return self.path / "locks" / "gc"

    @property
    def keys_lock(self) -> Path:
        """Held by whoever changes the ways to open an encrypted one, from reading them to the last write."""
        return self.path / "locks" / "keys"

    def secret(self) -> bytes:
        """The key of page fingerprints, made anew if it was lost: then old fingerprints just match nothing."""
        if self.crypt.secret is not None:
            return self.crypt.secret
        path = self.path / "secret"
        with disk.storage_errors(f"reading {path}"):
            if path.exists() and path.stat().st_size == 32:
                return path.read_bytes()
            disk.write_file(path, os.urandom(32))
            return path.read_bytes()


def _crypt(path: Path, ident: bytes, ring: KeyRing) -> Encrypted:
    from ijfs_engine.storage.unlocking import unlock

    return Encrypted(ring, ident, lambda: unlock(path, ident))


def _unlocked(path: Path, ident: bytes) -> Encrypted:
    from ijfs_engine.storage.unlocking import unlock  # what asks for keys: only an encrypted repository needs it

    return _crypt(path, ident, unlock(path, ident))


def _is_encrypted(path: Path, ident: bytes, said: bool) -> bool:
    """Whether a repository is encrypted, by what is in it where that and its format file do not agree. StorageError."""
    with disk.storage_errors(f"opening the repository {path}"):
        keys, journal = has_keys(path), sealed_journal(path)
    if said == keys and journal == (ident, said):
        return said
    with disk.storage_errors(f"opening the repository {path}"):
        sealed = is_sealed(path, ident)
    return said or keys if sealed is None else sealed


def _check_plain_content(path: Path, ident: bytes) -> None:
    """That a repository whose format file says nothing of encryption has nothing that is encrypted: its bytes would
    be taken for nothing, and what is added would be there for all to read. CorruptError, StorageError."""
    with disk.storage_errors(f"opening the repository {path}"):
        keys, journal = has_keys(path), sealed_journal(path)
    if not keys and (journal is None or not journal[1] or journal[0] not in (ident, id_of_packs(path))):
        return
    if _is_encrypted(path, id_of_packs(path) or ident, said=False):
        raise CorruptError(
            f"{path} is encrypted, and its file `format` is that of a repository which is not",
            hint="put back its file `format`, or have `ijfs fsck --repair` write it anew",
        )


def _check_kinds(path: Path) -> None:
    """That nothing in a repository leads out of it: LMDB writes its locks through a link. StorageError."""
    disk.check_directories(*(path / name for name in (*_DIRECTORIES, *_OTHERS)))
    disk.check_plain(*(path / name for name in _FILES))


def _check_utf8(path: Path) -> None:
    """That LMDB, which opens files by names in UTF-8 alone, can open an index there. IjfsError."""
    try:
        os.fspath(path.resolve()).encode()
    except UnicodeEncodeError:
        raise IjfsError(
            f"no repository can be at {path}: its path is not UTF-8", hint="name a directory whose path is"
        ) from None


def is_repository(path: Path) -> bool:
    """Whether a repository of any version, damaged or not, is at a path."""
    try:
        return (path / "format").read_bytes()[: len(_MAGIC)] == _MAGIC
    except OSError:
        return False


def _read_format(path: Path) -> tuple[bytes, bool]:
    """The repository's id, and whether it is encrypted, out of its format file."""
    file = path / "format"
    with disk.storage_errors(f"opening the repository {path}"):
        try:
            data = file.read_bytes()[:4096]
        except (FileNotFoundError, NotADirectoryError):
            raise NoRepositoryError(f"there is no ijfs repository at {path}", hint=_way_back(path)) from None
    if not data.startswith(_MAGIC):
        raise NoRepositoryError(f"{file} is not that of an ijfs repository", hint=_way_back(path))
    version = re.match(rb"ijfs repository\nversion: (\d{1,9})\n", data)
    if version is None:
        raise CorruptError(f"{file} is damaged", hint=_way_back(path))
    if int(version[1]) not in (FORMAT_VERSION, ENCRYPTED_VERSION):
        known = f"{FORMAT_VERSION} and {ENCRYPTED_VERSION}"
        raise UnknownFormatError(f"{path} has repository format {int(version[1])}; this program reads {known}")
    whole = _FORMAT.fullmatch(data)
    if whole is None or (whole[3] is None) == (int(version[1]) == ENCRYPTED_VERSION):
        raise CorruptError(f"{file} is damaged", hint=_way_back(path))
    features = set((whole[3] or b"").split())
    if strange := sorted(features - {ENCRYPTED}):
        if all(_is_misspelt(name) for name in strange):
            raise CorruptError(f"{file} is damaged", hint=_way_back(path))
        names = b", ".join(strange).decode()
        raise UnknownFormatError(f"{path} has a feature that this program does not know: {names}")
    return bytes.fromhex(whole[2].decode()), ENCRYPTED in features


def _is_misspelt(feature: bytes) -> bool:
    """Whether it is a known feature but for one byte: of damage, no other program's."""
    return len(feature) == len(ENCRYPTED) and sum(map(ne, feature, ENCRYPTED)) == 1


def _way_back(path: Path) -> str | None:
    """What to do about a lost `format` where the packs or the journal that it belongs to are there; None otherwise."""
    if id_of_packs(path) is None:
        return None
    return "its packs are there, only the file `format` is lost: `ijfs fsck --repair` writes it anew"


def id_of_packs(path: Path) -> bytes | None:
    """The repository's id as all its packs have it, and where none has one the journal; where packs differ, that of the
    journal if most of them have it, else None.

    One that is damaged has no say; StorageError."""
    with disk.storage_errors(f"opening the repository {path}"):
        packs = [file for _, file in pack_files(path / "packs")] if (path / "packs").is_dir() else []
        # The journal may have been put there from another repository: it has no say beside packs.
        found, journal = _ids_of(packs), _ids_of([path / "journal"])
    if not found:
        return next(iter(journal), None)
    ident, count = found.most_common(1)[0]
    return ident if len(found) == 1 or (ident in journal and 2 * count > found.total()) else None


def _ids_of(files: Iterable[Path]) -> Counter[bytes]:
    """The ids in the heads of packs, and how often each is there. OSError where the system refuses to look."""
    found: Counter[bytes] = Counter()
    for file in files:
        try:
            with disk.read_plain(file) as data:
                found[decode_pack_header(data.read(PACK_HEADER_SIZE), file)[2]] += 1
        except (CorruptError, UnknownFormatError):
            continue
        except OSError as error:
            if is_refusal(error):
                raise
    return found


def _read_only_reason(path: Path) -> StorageError | None:
    index = path / "index"
    needed = (path, index, index / "data.mdb", index / "lock.mdb")
    if all(os.access(one, os.W_OK) for one in needed if one.exists()):
        return None
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return StorageError(
            f"{path} can only be read: its filesystem is mounted read-only",
            hint="mount it writable, or copy the repository",
        )
    return StorageError(
        f"{path} can only be read: it is not yours to write", hint="check who owns the repository and its permissions"
    )
