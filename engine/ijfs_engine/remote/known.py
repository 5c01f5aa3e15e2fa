"""What was last known of a remote's tree, kept beside the repository: names and snapshots are looked up without a
network.

One file per tree: its heads, then the view as a manifest has it. Lost, it is fetched again.
"""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import Final

from ijfs_engine.errors import AmbiguousNameError, CorruptError, UnknownNameError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.format.frames import ID_SIZE, FrameKind
from ijfs_engine.format.records import ObjectId, Snapshot, decode_snapshot
from ijfs_engine.remote.operation import OperationId
from ijfs_engine.remote.view import EMPTY, Listing, View, decode_view, encode_view, shown_refs
from ijfs_engine.storage import disk
from ijfs_engine.storage.names import MIN_PREFIX, parse
from ijfs_engine.storage.refs import is_ref_key

_MAGIC: Final = b"ijfsview"


class KnownTree:
    """A tree as it was when it was last looked at."""

    def __init__(self, view: View, heads: tuple[OperationId, ...], crypt: Crypt = PLAIN) -> None:
        self.view = view
        self._crypt = crypt
        self.heads = heads

    @cached_property
    def refs(self) -> dict[str, ObjectId]:
        """`branch/NAME` and `tag/NAME`, as people see them, without what cannot be a name: a store may say anything."""
        return {name: at for name, at in shown_refs(self.view).items() if is_ref_key(name.encode(errors="replace"))}

    @cached_property
    def roots(self) -> dict[ObjectId, set[ObjectId]]:
        """The snapshots that have a root tree."""
        found: dict[ObjectId, set[ObjectId]] = {}
        for ident in self.view.listings:
            with contextlib.suppress(CorruptError):
                found.setdefault(self.snapshot(ident).root, set()).add(ident)
        return found

    def snapshots_of(self, ident: ObjectId) -> set[ObjectId]:
        """The snapshots that have this id, or a root tree of this id."""
        return self.roots.get(ident, set()) | ({ident} & self.view.listings.keys())

    def listing(self, ident: ObjectId) -> Listing | None:
        """What is known of a snapshot."""
        return self.view.listings.get(ident)

    def snapshot(self, ident: ObjectId) -> Snapshot:
        """Its record. UnknownNameError, CorruptError."""
        listing = self.view.listings.get(ident)
        if listing is None:
            raise UnknownNameError(f"there is no snapshot {ident.hex()[:12]}")
        if self._crypt.object_id(FrameKind.SNAPSHOT, listing.record) != ident:
            raise CorruptError(f"the record of {ident.hex()[:12]} in the remote's tree is not what its id says")
        return decode_snapshot(ident, listing.record)

    def snapshots(self) -> list[Snapshot]:
        """All that can be read, newest first."""
        found: list[Snapshot] = []
        for ident in self.view.listings:
            with contextlib.suppress(CorruptError):
                found.append(self.snapshot(ident))
        return sorted(found, key=lambda one: (one.created_ns, one.id), reverse=True)

    def named(self, kind: str) -> dict[str, ObjectId]:
        """Branches or tags (`branch`, `tag`), by name."""
        prefix = f"{kind}/"
        return {name.removeprefix(prefix): at for name, at in self.refs.items() if name.startswith(prefix)}

    def resolve(self, spec: str) -> ObjectId:
        """A snapshot's id from a branch, tag, prefix, `latest` or `NAME~2`. UnknownNameError, AmbiguousNameError."""
        name, generations = parse(spec)
        ident = self._named(name)
        for done in range(generations):
            parents = [parent for parent in self.snapshot(ident).parents if parent in self.view.listings]
            if not parents:
                from ijfs_engine.util.words import count

                raise UnknownNameError(f"{spec!r} goes back {count(generations, 'generation')}, and {done} are there")
            ident = parents[0]
        return ident

    def _named(self, name: str) -> ObjectId:
        if name == "latest" and self.view.listings:
            return max(self.view.listings, key=lambda ident: (self.view.listings[ident].created_ns, ident))
        for ref in (f"branch/{name}", f"tag/{name}", name):
            if ref in self.refs:
                return self.refs[ref]
        found = [
            ident for ident in self.view.listings if len(name) >= MIN_PREFIX and ident.hex().startswith(name.lower())
        ]
        if len(found) > 1:
            raise AmbiguousNameError(f"{name} could be any of {', '.join(ident.hex()[:12] for ident in found[:10])}")
        if not found:
            raise UnknownNameError(f"no snapshot, branch or tag is called {name!r} there")
        return found[0]


def read_known(path: Path, crypt: Crypt) -> KnownTree:
    """What the file says; nothing where it is missing or damaged. StorageError."""
    with disk.storage_errors(f"reading {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return KnownTree(EMPTY, (), crypt)
    count = int.from_bytes(data[8:12], "little")
    end = 12 + 4 + count * ID_SIZE
    try:
        if data[:8] != _MAGIC:
            raise CorruptError("no view")
        heads = tuple(data[at : at + ID_SIZE] for at in range(16, end, ID_SIZE))
        return KnownTree(decode_view(data[end:], crypt), heads, crypt)
    except CorruptError:
        return KnownTree(EMPTY, (), crypt)


def write_known(path: Path, known: KnownTree, crypt: Crypt) -> None:
    """Replace the file. StorageError."""
    head = _MAGIC + len(known.heads).to_bytes(8, "little") + b"".join(known.heads)
    with disk.storage_errors(f"writing {path}"):
        disk.write_file(path, head + encode_view(known.view, crypt))
