"""gc of an object store, in two phases and without locks: *mark* says what nobody reaches, *sweep* deletes it later.

Time is the store's own: when it says that something was written, against when it says that an object was which is
written now. So a host whose clock is wrong decides nothing. What is younger than the period of grace is never marked,
because its push may not be done; what was marked is deleted when the mark is as old and still nobody reaches it. Who
pushes meanwhile does not count on what is marked (push.py). Requests are as many as packs, however many chunks there
are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.pack_index import PACK_ID_SIZE
from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.bucket import Found
from ijfs_engine.remote.known import KnownTree
from ijfs_engine.remote.operation import Change, Unlisted
from ijfs_engine.remote.packing import pack_name
from ijfs_engine.remote.remote import Remote
from ijfs_engine.remote.sweeps import read_sweep
from ijfs_engine.remote.view import View
from ijfs_engine.storage.refs import whoami

GRACE_S: Final = 7 * 86_400
"""Longer than any push takes, and than a restored program reads memory from a snapshot that was removed there."""


class SweepReport(NamedTuple):
    """What a gc of a store did, or would do. `waiting`: packs that were marked and whose grace is not over."""

    snapshots_removed: int
    packs_marked: int
    bytes_marked: int
    packs_removed: int
    bytes_removed: int
    waiting: int
    packs_kept: int
    requests: int


def sweep(remote: Remote, *, grace_s: float = GRACE_S, dry_run: bool = False) -> SweepReport:
    """Free what no branch or tag of a remote's tree reaches. RemoteError, CorruptError: then nothing is deleted."""
    before = remote.bucket.traffic.requests
    remote.find_tree()
    remote.log.refresh()
    now = _store_time(remote, dry_run=dry_run)
    grace_ns = int(grace_s * 1e9)
    unlisted = _unlist(remote, now - grace_ns, dry_run=dry_run)
    packs = _stored_packs(remote)
    reached = _reached(remote.log.view, unlisted if dry_run else [])
    marks = {found.path: (found, read_sweep(remote.bucket, found.path)) for found in remote.bucket.list("sweeps")}
    ripe = [pack for found, named in marks.values() if found.modified_ns <= now - grace_ns for pack in named]
    going = [packs[pack] for pack in dict.fromkeys(ripe) if pack in packs and pack not in reached]
    waiting = {pack for _, named in marks.values() for pack in named} & packs.keys()
    fresh = [found for pack, found in packs.items()
             if pack not in reached and pack not in waiting and found.modified_ns <= now - grace_ns]  # fmt: skip
    if not dry_run:
        remote.bucket.delete([path for found in going for path in (found.path, f"{found.path}.index")])
        remote.bucket.delete([path for path, (found, _) in marks.items() if found.modified_ns <= now - grace_ns])
        if fresh:
            remote.bucket.put_new(f"sweeps/{os.urandom(16).hex()}", b"".join(map(_pack_of, fresh)))
        remote.bucket.delete(_old_manifests(remote, now - grace_ns))
        remote.bucket.delete([f.path for f in remote.bucket.list("moves") if f.modified_ns <= now - grace_ns])
        if going:
            remote.far.forget_all()
        remote.remember()
    return SweepReport(
        len(unlisted),
        len(fresh),
        sum(found.size for found in fresh),
        len(going),
        sum(found.size for found in going),
        len(waiting) - len(going),
        len(packs) - len(going),
        remote.bucket.traffic.requests - before,
    )


def _store_time(remote: Remote, *, dry_run: bool) -> int:
    """What time it is by the store's clock. A dry run writes nothing, and believes the clock here: it only tells."""
    if dry_run:
        return time.time_ns()
    path = f"sweeps/.clock-{os.urandom(8).hex()}"
    remote.bucket.put(path, b"")
    found = remote.bucket.look(path)
    remote.bucket.delete([path])
    assert found is not None
    return found.modified_ns


def _unlist(remote: Remote, before_ns: int, *, dry_run: bool) -> list[ObjectId]:
    """Take the snapshots off the list that no ref leads to and that were listed before a time."""
    chosen: list[ObjectId] = []

    def changes(view: View) -> Sequence[Change]:
        chosen[:] = [ident for ident in _unnamed(view, remote.crypt) if _listed_before(remote, view, ident, before_ns)]
        return [Unlisted(ident, tuple(view.listings[ident].packs)) for ident in chosen]

    if dry_run:
        changes(remote.log.view)
    else:
        remote.log.add(changes, who=whoami(), host=os.uname().nodename, why="gc")
    return chosen


def _unnamed(view: View, crypt: Crypt) -> list[ObjectId]:
    tree = KnownTree(view, (), crypt)
    reached: set[ObjectId] = set()
    stack = [value.id for values in view.refs.values() for value in values.values()]
    while stack:
        ident = stack.pop()
        if ident not in reached and ident in view.listings:
            reached.add(ident)
            stack += tree.snapshot(ident).parents
    return sorted(view.listings.keys() - reached)


def _listed_before(remote: Remote, view: View, ident: ObjectId, before_ns: int) -> bool:
    """Whether all operations that list a snapshot are older: somebody may be about to name it."""
    found = (remote.bucket.look(f"ops/{key.hex()}") for key in view.listings[ident].packs)
    return all(one is None or one.modified_ns <= before_ns for one in found)


def _reached(view: View, without: Sequence[ObjectId]) -> set[bytes]:
    gone = set(without)
    return {pack for ident, one in view.listings.items() if ident not in gone for pack in one.pack_ids()}


def _stored_packs(remote: Remote) -> dict[bytes, Found]:
    """The packs that there are, by id; an index whose pack is gone, or never came, counts as one."""
    found: dict[bytes, Found] = {}
    for one in remote.bucket.list("packs"):
        name = one.path.rsplit("/", 1)[-1].removesuffix(".index")
        if len(name) == 2 * PACK_ID_SIZE and (not one.path.endswith(".index") or bytes.fromhex(name) not in found):
            found[bytes.fromhex(name)] = one._replace(path=pack_name(bytes.fromhex(name)))
    return found


def _pack_of(found: Found) -> bytes:
    return bytes.fromhex(found.path.rsplit("/", 1)[-1])


def _old_manifests(remote: Remote, before_ns: int) -> list[str]:
    """Manifests that no head's way begins with: a cold host reads none of them."""
    needed = {f"manifests/{ident.hex()}" for ident in remote.log.way_of_heads()}
    return [f.path for f in remote.bucket.list("manifests") if f.path not in needed and f.modified_ns <= before_ns]
