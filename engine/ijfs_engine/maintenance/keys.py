"""The ways to open an encrypted repository: listed, added, removed; and its sealing key changed for another one.

`Repository.keyring` is this. A way in that is removed does not take the keys from who has had them: that is what
`rotate` is for. It seals all anew with a new key, pack by pack, under the lock of gc; killed at any step, it leaves a
repository that opens as before, and the next `rotate` goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError, IjfsError, LockedError, UnknownNameError
from ijfs_engine.format.crypt import Encrypted, KeyRing
from ijfs_engine.format.frames import decode_frame, encode_header
from ijfs_engine.maintenance.repack import Repacker
from ijfs_engine.storage import disk
from ijfs_engine.storage.frame_scan import scan_frames
from ijfs_engine.storage.index import REFLOG, REFS, Update
from ijfs_engine.storage.journal import Transaction, encode_journal
from ijfs_engine.storage.key_files import (
    KeyFile,
    path_of,
    read_key_files,
    remove_key_file,
    rewrapped,
    wrap_for_passphrase,
    wrap_for_recipients,
    write_key_file,
)
from ijfs_engine.storage.locks import exclusive, live_files
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pack import pack_path
from ijfs_engine.storage.unlocking import forget, made_here, newest_file, note_made, opened_by, opener, remember
from ijfs_engine.util.progress import Progress

_MARKER: Final = "rotating"
"""In `keys/` while a rotation goes on: the number of the key that it retires."""


class Rotation(NamedTuple):
    """What `rotate` did. `dropped`: ways in that only their passphrases could have taken along; `kept_old`: whether
    the old key still opens what it sealed, because a remote, or a damaged pack (`damaged`), holds some of that."""

    dropped: list[str]
    packs: int
    kept_old: bool
    damaged: list[str]


class Keyring:
    """The keys of one repository."""

    def __init__(self, repository: OpenRepository) -> None:
        """IjfsError for one that is not encrypted."""
        crypt = repository.directory.crypt
        if not isinstance(crypt, Encrypted):
            raise IjfsError(
                f"{repository.directory.path} is not encrypted",
                hint="`ijfs init --encrypt` makes one that is, and `ijfs copy` brings snapshots there",
            )
        self._crypt: Encrypted = crypt
        self._repository = repository
        self._directory: Path = repository.directory.keys

    def all(self) -> list[KeyFile]:
        """Every way in. StorageError."""
        return read_key_files(self._directory).files

    def damaged(self) -> list[str]:
        """Names of files that are no ways in any more. StorageError."""
        return read_key_files(self._directory).damaged

    def add_passphrase(self, name: str, passphrase: str) -> None:
        """One more way in. IjfsError, LockedError beside another change of the keys, StorageError."""
        self._add(name, lambda ring: wrap_for_passphrase(ring, name, passphrase))

    def add_recipients(self, name: str, recipients: Sequence[str]) -> None:
        """One more, for who has a private key of age or ssh. IjfsError, LockedError, StorageError."""
        self._add(name, lambda ring: wrap_for_recipients(ring, name, recipients))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Close one way in; never the last, and only with `force` the one that opened the repository, as long as no
        other is known to open it. UnknownNameError, IjfsError, LockedError, StorageError."""
        with self._changing():
            ways = read_key_files(self._directory)
            # A damaged one goes as long as a sound one is left: where none is, it may be the last that opens anything.
            if not ways.files or path_of(self._directory, name).name not in ways.damaged:
                self._check_removable(ways.files, name, force=force)
            remove_key_file(self._directory, name)

    def forget(self) -> bool:
        """Have nobody keep the keys in memory, so that they are asked for again; whether the kernel kept them."""
        return forget(self._repository.directory.id)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone with the keys: what is read of them in the block is so until its end. LockedError, StorageError."""
        directory = self._repository.directory
        directory.check_writable()
        with exclusive(directory.keys_lock, "another change of the keys"):
            yield

    def _add(self, name: str, wrap: Callable[[KeyRing], KeyFile]) -> None:
        with self._changing():
            self._check_new(name)
            self._renew()
            write_key_file(self._directory, wrap(self._crypt.ring))
            note_made(self._repository.directory.id, name)

    def _renew(self) -> None:
        """A rotation since this repository was opened has made another ring. LockedRepositoryError."""
        files = self.all()
        if files and not newest_file(files).is_of(self._crypt.ring):
            self._crypt.renew()

    def _check_removable(self, files: Sequence[KeyFile], name: str, *, force: bool) -> None:
        if name not in [file.name for file in files]:
            if path_of(self._directory, name).exists():
                raise IjfsError(f"{name} is damaged, and no other key is left", hint="add another one first")
            raise UnknownNameError(f"there is no key {name}", hint="`ijfs keyring list` shows them")
        # A rotation that was killed left others with the ring from before it: they do not open what is new.
        newest = newest_file(files).newest
        left = [file for file in files if file.newest == newest and file.name != name]
        if not left:
            raise IjfsError(f"{name} is the only key: without it nothing could be read", hint="add another one first")
        ident = self._repository.directory.id
        opened_with = opener(ident)
        if force or any(file.name in {opened_with, *made_here(ident)} for file in left):
            return
        if name == opened_with or not any(file.check for file in left):
            others = ", ".join(file.name for file in left)
            raise IjfsError(
                f"nothing shows that the repository opens without {name}",
                hint=f"open it with what is left ({others}) when you remove {name}; --force removes it all the same",
            )

    def _check_new(self, name: str) -> None:
        if path_of(self._directory, name).exists():
            raise IjfsError(f"there is a key {name} already", hint="`ijfs keyring remove` it first, or choose a name")

    # --- Rotation

    def rotate(self, passphrase: str | None, *, keep_old: bool, progress: Progress | None = None) -> Rotation:
        """Seal everything anew. Ways in for recipients stay, and the one that `passphrase` opens; others are dropped.

        `keep_old`: what the old key sealed is elsewhere, too. LockedError while saves run, CorruptError for a damaged
        journal, IjfsError where no way in would be left, StorageError."""
        self._repository.directory.check_writable()
        with (
            exclusive(self._repository.directory.gc_lock, "gc"),
            self._changing(),
            disk.storage_errors("changing the key"),
        ):
            self._check_no_sessions()
            self._transactions()
            dropped = self._begin(passphrase)
            # One that began before it could see the new key seals with the old one still.
            self._check_no_sessions()
            self._repository.index.write(self._reseal_names)
            repacker = Repacker(self._repository, progress)
            repacker.rewrite_all(self._is_old, self._resealed)
            damaged = [one.pack for one in repacker.kept]
            if not damaged:
                self._end(passphrase, keep_old=keep_old)
            return Rotation(dropped, repacker.rewritten, keep_old or bool(damaged), damaged)

    def _check_no_sessions(self) -> None:
        if any(True for _ in live_files(self._repository.directory.sessions)):
            raise LockedError("a save is running", hint="rotate again when it is done")

    def _begin(self, passphrase: str | None) -> list[str]:
        """Have a new key seal from now on, and all ways in lead to it; the names of those that were dropped."""
        self._crypt.renew()
        ring, marker = self._crypt.ring, self._directory / _MARKER
        if not (marker.exists() and ring.newest > int(marker.read_bytes() or b"0")):
            disk.write_file(marker, str(ring.newest).encode())
            ring = ring.with_new_key()
        return self._wrap(ring, passphrase)

    def _wrap(self, ring: KeyRing, passphrase: str | None) -> list[str]:
        files = self.all()
        found = opened_by(files, passphrase) if passphrase is not None else None
        mine = found[1].name if found is not None else None
        new = [rewrapped(file, ring, passphrase if file.name == mine else None) for file in files]
        if not any(new):
            raise IjfsError("no way in would be left", hint="give the passphrase of the key that is to stay")
        for file in new:
            if file is not None:
                write_key_file(self._directory, file)
        dropped = [old.name for old, file in zip(files, new, strict=True) if file is None]
        for name in dropped:
            remove_key_file(self._directory, name)
        remember(self._repository.directory.id, ring)
        self._crypt.ring = ring
        return dropped

    def _transactions(self) -> list[Transaction]:
        """The whole journal. CorruptError."""
        found = [entry for _, entry in self._repository.journal.transactions()]
        sound = [entry for entry in found if isinstance(entry, Transaction)]
        if len(sound) != len(found):
            raise CorruptError("the journal is damaged", hint="`ijfs fsck --repair` first")
        return sound

    def _reseal_names(self, update: Update) -> None:
        for table in (REFS, REFLOG):
            rows = list(update.items(table))
            update.clear(table)
            update.put_many(table, rows)
        journal = self._repository.journal
        journal.settle(update)
        data = encode_journal(self._transactions(), self._repository.directory.id, self._crypt)
        journal.replace(update, data, journal.position(update)[1])

    def _is_old(self, number: int) -> bool:
        """Whether anything in a pack is sealed by a key that is to go."""
        path = pack_path(self._repository.directory.packs, number)
        newest = self._crypt.ring.newest
        return any(one.frame is None or self._crypt.sealed_by(one.frame) != newest for one in scan_frames(path))

    def _resealed(self, data: memoryview) -> bytes:
        header, frame = decode_frame(data)
        sealed = self._crypt.seal(header.kind, self._crypt.open(header.kind, frame))
        return encode_header(header.kind, sealed) + sealed.payload

    def _end(self, passphrase: str | None, *, keep_old: bool) -> None:
        if not keep_old:
            self._wrap(self._crypt.ring.only_newest(), passphrase)
        disk.unlink(self._directory / _MARKER)
        disk.fsync_dir(self._directory)
