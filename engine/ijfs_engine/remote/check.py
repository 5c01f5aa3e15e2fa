"""fsck of a remote: that every operation, manifest, pack and index is there and what its id says; and what heals it.

A pack that is lost or altered is named with the snapshots that need it. A host that has one of those snapshots whole
sends what is missing anew, in other packs, and lists the snapshot with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ijfs_engine.errors import CorruptError
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.crypt import Crypt
from ijfs_engine.format.frames import EncodedChunk, FrameKind, decode_frame
from ijfs_engine.format.pack_index import CHUNK_PACK, IndexRow, PackIndex, decode_pack_index
from ijfs_engine.format.records import ObjectId
from ijfs_engine.remote import indexes
from ijfs_engine.remote.bucket import MissingObjectError, RemoteError
from ijfs_engine.remote.known import KnownTree
from ijfs_engine.remote.packing import pack_name
from ijfs_engine.remote.push import push
from ijfs_engine.remote.remote import Remote
from ijfs_engine.storage.index import SNAPSHOTS
from ijfs_engine.storage.object_store import verify_object
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.util.pipeline import thread_pool
from ijfs_engine.util.progress import Progress

_AT_ONCE: Final = 4


class Harm(NamedTuple):
    """One thing that is wrong at a remote, and the snapshots that cannot be read whole because of it."""

    where: str
    message: str
    snapshots: tuple[ObjectId, ...]
    pack: bytes | None = None


class CheckReport(NamedTuple):
    """What was looked at and found; `healed`: snapshots that were sent anew, `left`: the harm that is there still."""

    snapshots: int
    operations: int
    packs: int
    bytes_read: int
    harm: list[Harm]
    healed: list[ObjectId]
    left: list[Harm]


def check(remote: Remote, *, data: bool = True, progress: Progress | None = None) -> CheckReport:
    """Look at everything a remote's tree needs; with `data`, read every byte of it. RemoteError, CorruptError where
    nothing can be told."""
    before = remote.bucket.traffic.received
    remote.find_tree()
    remote.log.refresh()
    harm = [*_operations(remote), *_records(remote)]
    packs = sorted(remote.log.view.packs())
    sizes = {found.path: found.size for found in remote.bucket.list("packs")}
    done = 0

    def one(pack: bytes) -> str | None:
        return _check_pack(remote, pack, sizes, data=data)

    with thread_pool(_AT_ONCE, "ijfs-check") as pool:
        for pack, message in zip(packs, pool.map(one, packs), strict=True):
            done += 1
            if progress is not None:
                progress("fsck: packs", done, len(packs))
            if message is not None:
                harm.append(Harm(pack_name(pack), message, _needing(remote, pack), pack))
    received = remote.bucket.traffic.received - before
    view = remote.log.view
    return CheckReport(len(view.listings), len(view.history), len(packs), received, harm, [], harm)


def _needing(remote: Remote, pack: bytes) -> tuple[ObjectId, ...]:
    return tuple(i for i, one in sorted(remote.log.view.listings.items()) if pack in one.pack_ids())


def _operations(remote: Remote) -> Iterable[Harm]:
    """Operations that are in the history and not in the store: a cold host could not merge past them."""
    there = {found.path for found in remote.bucket.list("ops")}
    for ident in sorted(remote.log.view.history):
        if f"ops/{ident.hex()}" not in there:
            yield Harm(f"ops/{ident.hex()}", "the operation is missing", ())


def _records(remote: Remote) -> Iterable[Harm]:
    tree = KnownTree(remote.log.view, remote.log.heads, remote.crypt)
    for ident in sorted(remote.log.view.listings):
        try:
            tree.snapshot(ident)
        except CorruptError as error:
            yield Harm("the list", str(error), (ident,))


def _check_pack(remote: Remote, pack: bytes, sizes: dict[str, int], *, data: bool) -> str | None:
    """What is wrong with a pack, in a sentence; None for a sound one."""
    name = pack_name(pack)
    try:
        if name not in sizes:
            return "the pack is missing"
        contents = indexes.read_index(remote.bucket, pack)
        if sizes[name] < contents.size:
            return f"the pack has {sizes[name]} bytes, and its frames take {contents.size}"
        if data:
            _check_frames(contents, remote.bucket.get(name), remote.crypt)
    except MissingObjectError:
        return "its index is missing"
    except CorruptError as error:
        return str(error)
    except RemoteError as error:
        return f"it cannot be read: {error}"
    return None


def _check_frames(contents: PackIndex, data: bytes, crypt: Crypt) -> None:
    """That every frame is where the index says and what its id says. CorruptError."""
    view = memoryview(data)
    for row in contents.rows:
        header, frame = decode_frame(view[row.offset : row.offset + row.span], f"at {row.offset}")
        tag = header.codec if header.kind == FrameKind.CHUNK else header.kind
        if (header.id, header.plain, tag, header.depth) != (row.id, row.plain, row.tag, row.depth):
            raise CorruptError(f"at {row.offset}: another frame than the index says")
        _check_plain(contents.kind, row, crypt.open(header.kind, frame), crypt)
    if decode_pack_index(bytes(view[contents.size : -16])).rows != contents.rows:
        raise CorruptError("its own index is another one than the one beside it")


def _check_plain(kind: int, row: IndexRow, frame: EncodedChunk, crypt: Crypt) -> None:
    """That the bytes are those of the id; of a difference, its checksum has to do."""
    if kind != CHUNK_PACK:
        verify_object(row.tag, frame, crypt)
    elif not frame.bases:
        chunk_codec.decode(frame, lambda ids: [], crypt)


def mend(repository: OpenRepository, remote: Remote, report: CheckReport, progress: Progress | None) -> CheckReport:
    """`heal`, and what is left then: what a look without the bytes finds, and the packs whose bytes are altered as long
    as a snapshot needs them."""
    healed = heal(repository, remote, report, progress)
    left = check(remote, data=False).harm
    named, needed = {harm.where for harm in left}, remote.log.view.packs()
    for harm in report.harm:
        if harm.pack is not None and harm.pack in needed and harm.where not in named:
            left.append(harm._replace(snapshots=_needing(remote, harm.pack)))
    return report._replace(healed=healed, left=left)


def heal(repository: OpenRepository, remote: Remote, report: CheckReport, progress: Progress | None) -> list[ObjectId]:
    """Send anew what harmed snapshots need, those that are here; which these were. CorruptError, RemoteError."""
    bad = {harm.pack for harm in report.harm if harm.pack is not None}
    hurt = dict.fromkeys(ident for harm in report.harm for ident in harm.snapshots)
    with repository.index.read() as view:
        here = [ident for ident in hurt if view.get(SNAPSHOTS, ident) is not None]
    if bad and here:
        remote.far.forget_all()
        push(repository, remote, {}, also=here, without=bad, progress=progress)
    return here if bad else []
