"""One remote, open: its bucket, which tree is in it, and what was last known of that tree.

The verbs (`push.py`, `fetch.py`, `pull.py`, `sweep.py`, `check.py`) are functions of one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from ijfs_engine.errors import CorruptError, IjfsError, UnknownFormatError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.remote.bucket import Bucket, MissingObjectError
from ijfs_engine.remote.far_index import FarIndex
from ijfs_engine.remote.known import KnownTree, read_known, write_known
from ijfs_engine.remote.oplog import OpLog
from ijfs_engine.remote.stored_names import RemoteName, RemoteNames

FORMAT: Final = "format"
FEATURES: Final = "metapacks operations"
ENCRYPTED: Final = "encrypted"
_FORMAT: Final = re.compile(
    rb"ijfs repository\nversion: (\d{1,9})\nid: ([0-9a-f]{32})\nfeatures: ([a-z ]*)\n(?:key: ([0-9a-f]{32})\n)?"
)


class Remote:
    """A remote of one repository. Used from one thread; its bucket from many."""

    def __init__(self, directory: Path, name: RemoteName, bucket: Bucket, crypt: Crypt = PLAIN) -> None:
        """`directory` is the repository's `remotes/`, `crypt` the repository's. Close it."""
        self.crypt = crypt
        self.name = name.name
        self.url = name.url
        self._far: FarIndex | None = None
        self.bucket = bucket
        self._names = RemoteNames(directory)
        self._directory = directory
        self.store = bytes.fromhex(name.store)
        self.log = OpLog(bucket, crypt=crypt)
        if self.store:
            known = self.known()
            self.log = OpLog(bucket, known.view, known.heads, crypt)

    def close(self) -> None:
        """Let go of what is known of packs."""
        if self._far is not None:
            self._far.close()

    @property
    def far(self) -> FarIndex:
        """Where the tree's chunks are. Once the tree is known (`find_tree`)."""
        if self._far is None:
            self._far = FarIndex(self._directory, self.store)
        return self._far

    def known(self) -> KnownTree:
        """The tree as it was last looked at."""
        return read_known(known_path(self._directory, self.store.hex()), self.crypt)

    def remember(self) -> KnownTree:
        """Keep what the log of operations knows now."""
        known = KnownTree(self.log.view, self.log.heads, self.crypt)
        write_known(known_path(self._directory, self.store.hex()), known, self.crypt)
        return known

    def find_tree(self, *, make: bool = False) -> None:
        """See which tree is there; with `make`, begin one where there is nothing. IjfsError for a place that holds
        something else, UnknownFormatError, RemoteError."""
        try:
            data = self.bucket.get(FORMAT)
        except MissingObjectError:
            data = self._begin_tree(make=make)
        version = re.match(rb"ijfs repository\nversion: (\d{1,9})\n", data[:4096])
        found = _FORMAT.fullmatch(data[:4096])
        if version is None or (found is None and int(version[1]) == 2):
            raise IjfsError(
                f"{self.url} holds something else than an ijfs tree", hint="name an empty prefix of its own"
            )
        unknown = set(found[3].decode().split()) - {*FEATURES.split(), ENCRYPTED} if found else set()
        if found is None or int(found[1]) != 2 or unknown:
            what = f"features {', '.join(sorted(unknown))}" if unknown else f"format {int(version[1])}"
            raise UnknownFormatError(f"{self.url} has {what}, which this program does not know")
        self._check_keys(found)
        store = bytes.fromhex(found[2].decode())
        if self.store and store != self.store:
            raise IjfsError(
                f"{self.url} holds another tree than it did ({store.hex()[:8]}, not {self.store.hex()[:8]})",
                hint=f"if that is meant: `ijfs remote remove {self.name}`, then add it again",
            )
        self._use(store)

    def _check_keys(self, found: re.Match[bytes]) -> None:
        """That the tree and the repository have the same keys, or none. IjfsError."""
        there = found[4].decode() if found[4] is not None else None
        mine = self.crypt.mark.hex() if self.crypt.mark is not None else None
        if (there is None) != (ENCRYPTED not in found[3].decode().split()):
            raise CorruptError(f"the file `format` of {self.url} is damaged")
        if there == mine:
            return
        if there is None:
            what = "is not encrypted, and this repository is"
        else:
            what = "is encrypted" if mine is None else "is encrypted with other keys"
        raise IjfsError(
            f"the tree at {self.url} {what}",
            hint="`ijfs clone` makes a repository with its keys; "
            "`ijfs copy` brings snapshots from one repository to another",
        )

    def _use(self, store: bytes) -> None:
        if store != self.store:
            self.store = store
            self._names.seen(self.name, store.hex())
            known = self.known()
            self.log = OpLog(self.bucket, known.view, known.heads, self.crypt)

    def _begin_tree(self, *, make: bool) -> bytes:
        there = next(iter(self.bucket.list("")), None)
        if there is not None:
            try:
                return self.bucket.get(FORMAT)  # somebody else has just begun it
            except MissingObjectError:
                raise IjfsError(
                    f"{self.url} holds something else than an ijfs tree: {there.path}",
                    hint="name an empty prefix of its own",
                ) from None
        if not make:
            raise IjfsError(f"there is no tree at {self.url} yet", hint=f"`ijfs push {self.name}` begins one")
        features = f"{ENCRYPTED} {FEATURES}" if self.crypt.mark is not None else FEATURES
        text = f"ijfs repository\nversion: 2\nid: {os.urandom(16).hex()}\nfeatures: {features}\n"
        if self.crypt.mark is not None:
            text += f"key: {self.crypt.mark.hex()}\n"
        self.bucket.put_new(FORMAT, text.encode())
        return self.bucket.get(FORMAT)


def known_path(directory: Path, store: str) -> Path:
    """Where what is known of a tree is kept."""
    return directory / f"{store}.tree"
