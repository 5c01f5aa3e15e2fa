"""What a gc of the store wants to delete: `sweeps/` objects. Who pushes counts on none of it; sweep.py makes them."""

from __future__ import annotations

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.pack_index import PACK_ID_SIZE
from ijfs_engine.remote.bucket import Bucket, MissingObjectError
from ijfs_engine.remote.view import split_packs


def swept_packs(bucket: Bucket) -> set[bytes]:
    """All packs that some gc has marked. RemoteError."""
    return {pack for found in bucket.list("sweeps") for pack in read_sweep(bucket, found.path)}


def read_sweep(bucket: Bucket, path: str) -> list[bytes]:
    """The packs that one mark names; none where it is gone meanwhile. CorruptError, RemoteError."""
    try:
        data = bucket.get(path)
    except MissingObjectError:
        return []
    if len(data) % PACK_ID_SIZE:
        raise CorruptError(f"{bucket.url}/{path} is no list of packs")
    return split_packs(data)
