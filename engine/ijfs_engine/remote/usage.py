"""du of a remote: what its packs take, and what each snapshot needs and would give back."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.packing import pack_name
from ijfs_engine.remote.remote import Remote


class SnapshotShare(NamedTuple):
    """Bytes of the packs that a snapshot needs, and of those that no other listed one needs."""

    id: ObjectId
    needed: int
    alone: int


class RemoteUsage(NamedTuple):
    """Bytes: of all that is there, of packs that something listed needs, of packs that nothing does."""

    total: int
    needed: int
    unneeded: int
    packs: int
    snapshots: list[SnapshotShare]


def usage(remote: Remote) -> RemoteUsage:
    """Count, by the sizes that the store says. RemoteError, CorruptError."""
    remote.find_tree()
    view = remote.log.refresh()
    remote.remember()
    sizes = {found.path: found.size for found in remote.bucket.list("")}
    needed = view.packs()
    users = Counter(pack for one in view.listings.values() for pack in one.pack_ids())

    def size(pack: bytes) -> int:
        return sizes.get(pack_name(pack), 0)

    shares = [
        SnapshotShare(ident, sum(map(size, packs)), sum(size(pack) for pack in packs if users[pack] == 1))
        for ident, one in view.listings.items()
        for packs in (one.pack_ids(),)
    ]
    in_packs = sum(at for path, at in sizes.items() if path.startswith("packs/") and not path.endswith(".index"))
    of_needed = sum(map(size, needed))
    return RemoteUsage(sum(sizes.values()), of_needed, in_packs - of_needed, len(needed), shares)
