"""The indexes of a store's packs, learnt when they are needed: a restore needs those of its snapshot's packs alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.pack_index import PackIndex, decode_pack_index
from ijfs_engine.remote.bucket import Bucket
from ijfs_engine.remote.far_index import FarIndex
from ijfs_engine.remote.packing import pack_name
from ijfs_engine.util.pipeline import thread_pool

_AT_ONCE: Final = 32
_TOGETHER: Final = 64
"""Packs that go into the far index in one transaction."""


def load(bucket: Bucket, far: FarIndex, packs: Iterable[bytes]) -> int:
    """Know what is in packs; how many were not known before. CorruptError, RemoteError."""
    wanted = sorted(packs)
    new = [pack for pack, known in zip(wanted, far.has_packs(wanted), strict=True) if not known]
    if not new:
        return 0
    with thread_pool(min(_AT_ONCE, len(new)), "ijfs-index") as pool:
        lot: list[PackIndex] = []
        for found in pool.map(lambda pack: read_index(bucket, pack), new):
            lot.append(found)
            if len(lot) == _TOGETHER:
                far.register(lot)
                lot = []
        far.register(lot)
    return len(new)


def read_index(bucket: Bucket, pack: bytes) -> PackIndex:
    """One pack's index. CorruptError, MissingObjectError, RemoteError."""
    found = decode_pack_index(bucket.get(f"{pack_name(pack)}.index"))
    if found.pack != pack:
        raise CorruptError(f"{bucket.url}/{pack_name(pack)}.index is another pack's")
    return found


def is_there(bucket: Bucket, pack: bytes) -> bool:
    """Whether a pack is still in its store. RemoteError."""
    return bucket.size(pack_name(pack)) is not None
