"""Where a program goes on that moves from one host to another: who says so first in the store decides, for good.

`moves/<snapshot id>` is put if absent, so that of two hosts that do not hear each other exactly one runs the program.
The snapshot is the one that it was stopped in; each move makes a new one.
"""

from __future__ import annotations

from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote.remote import Remote


def claim(remote: Remote, ident: ObjectId, place: str) -> str:
    """Say that the program of a snapshot goes on at a place, unless it was said before; where it goes on. RemoteError,
    CorruptError."""
    remote.find_tree()
    path = f"moves/{ident.hex()}"
    if remote.bucket.put_new(path, remote.crypt.seal_bytes(place.encode(), ident)):
        return place
    # A request that is repeated finds what it wrote itself: what counts is what is there.
    return remote.crypt.open_bytes(remote.bucket.get(path), ident).decode()
