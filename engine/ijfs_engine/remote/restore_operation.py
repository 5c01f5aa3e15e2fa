"""`ijfs op restore`: a remote's names as they were after one operation, by one more operation.

Where `undo` takes one operation back and leaves what was done since, this leaves nothing of it. No operation goes from
the log, so a restore can be undone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.known import KnownTree
from ijfs_engine.remote.operation import Change, Listed, Moved, OperationId
from ijfs_engine.remote.remote import Remote
from ijfs_engine.remote.undo import chosen
from ijfs_engine.remote.view import View, shown_refs
from ijfs_engine.storage.refs import whoami


class RestoreReport(NamedTuple):
    """After which operation names are as they were; names that changed → where they are now; snapshots that are
    listed again."""

    operation: OperationId
    refs: dict[str, ObjectId | None]
    listed: list[ObjectId]


def restore_operation(remote: Remote, prefix: str) -> RestoreReport:
    """Put all names back as they were after the operation whose id begins so. UnknownNameError, AmbiguousNameError."""
    remote.find_tree()
    remote.log.refresh()
    remote.log.merge()
    ident, _ = chosen(remote.log, prefix)
    then = remote.log.view_after(ident)
    wanted = shown_refs(then)
    refs: dict[str, ObjectId | None] = {}
    again: list[ObjectId] = []

    def changes(now: View) -> Sequence[Change]:
        shown = shown_refs(now)
        names = sorted(now.refs.keys() | wanted.keys())
        refs.update({name: wanted.get(name) for name in names if shown.get(name) != wanted.get(name)})
        again[:] = [one for one in _reached(then, wanted.values(), remote.crypt) if one not in now.listings]
        moved = [Moved(name, at, tuple(now.refs.get(name, {}))) for name, at in refs.items()]
        return [*(_listed(then, one) for one in again), *moved]

    remote.log.add(changes, who=whoami(), host=os.uname().nodename, why=f"restore of {ident.hex()[:10]}")
    remote.remember()
    return RestoreReport(ident, refs, again)


def _reached(then: View, heads: Iterable[ObjectId], crypt: Crypt) -> list[ObjectId]:
    """What names led to, oldest first, as far as it was listed."""
    tree = KnownTree(then, (), crypt)
    found: set[ObjectId] = set()
    stack = list(heads)
    while stack:
        ident = stack.pop()
        if ident not in found and ident in then.listings:
            found.add(ident)
            stack += tree.snapshot(ident).parents
    return sorted(found, key=lambda ident: (then.listings[ident].created_ns, ident))


def _listed(then: View, ident: ObjectId) -> Listed:
    """As it was: its packs may be gone already, which the next fsck says."""
    listing = then.listings[ident]
    return Listed(ident, listing.created_ns, listing.record, b"".join(sorted(listing.pack_ids())))
