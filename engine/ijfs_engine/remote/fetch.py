"""`ijfs fetch`: what other hosts did to a remote's tree. Records and names come, and no byte of any program."""

from __future__ import annotations

from typing import NamedTuple

from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.remote import Remote
from ijfs_engine.remote.view import View, shown_refs


class FetchReport(NamedTuple):
    """What is new there since the last look. `refs`: name → (where it was, where it is)."""

    snapshots: int
    new: int
    refs: dict[str, tuple[ObjectId | None, ObjectId | None]]
    requests: int
    received: int


def fetch(remote: Remote) -> FetchReport:
    """Look at the tree, and remember it. IjfsError where there is none, CorruptError, RemoteError."""
    before = remote.bucket.traffic.requests, remote.bucket.traffic.received
    remote.find_tree()
    old = remote.log.view
    new = remote.log.refresh()
    if remote.log.view is not old:
        if old.packs() - new.packs():
            remote.far.forget_all()
        remote.remember()
    traffic = remote.bucket.traffic
    return FetchReport(
        len(new.listings),
        len(new.listings.keys() - old.listings.keys()),
        _moved(old, new),
        traffic.requests - before[0],
        traffic.received - before[1],
    )


def _moved(old: View, new: View) -> dict[str, tuple[ObjectId | None, ObjectId | None]]:
    before, after = shown_refs(old), shown_refs(new)
    names = sorted(before.keys() | after.keys())
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}
