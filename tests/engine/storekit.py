"""Snapshots made and read through the store alone, for tests that are about packs, index, refs, gc and fsck."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

from ijfs_engine import Repository, Snapshot
from ijfs_engine.format import chunk_codec
from ijfs_engine.format.chunk_codec import Base, Plain
from ijfs_engine.format.frames import FrameKind, pack_bases
from ijfs_engine.format.records import (
    ZERO_RUN,
    Entry,
    FileContent,
    Leaf,
    Tree,
    encode_file,
    encode_leaf,
    encode_tree,
)
from ijfs_engine.storage.session import Session

CHUNK = 4096
LEAF_CHUNKS = 4


def save(
    repository: Repository,
    files: Mapping[str, bytes],
    *,
    parents: Sequence[bytes] = (),
    branch: str | None = None,
    message: str = "",
    session: Session | None = None,
) -> Snapshot:
    """Commit a flat tree of files: chunks of 4 KiB, 4 to a leaf, so that files of different kinds are small."""
    session = session or repository.session()
    with session:
        entries = [_entry(session, name, data) for name, data in sorted(files.items())]
        root = session.put_object(FrameKind.TREE, encode_tree(Tree(tuple(entries))))
        return session.commit_snapshot(root, parents=parents, branch=branch, message=message)


def put(session: Session, data: bytes) -> bytes:
    """Put one chunk unless it is there; its id."""
    ident = session.crypt.chunk_id(data)
    if not session.lookup_many([ident])[0]:
        session.put_chunks([chunk_codec.encode(memoryview(data), ident)])
    return ident


def put_against(session: Session, data: bytes, base: bytes, base_id: bytes, depth: int = 0) -> bytes:
    """Put one chunk as a difference to another of the same length; its id."""
    ident = session.crypt.chunk_id(data)
    bases = pack_bases([(base_id, 0, len(base))])
    encoded = chunk_codec.encode(memoryview(data), ident, Base(base, bases, depth))
    assert encoded.bases, "the test wants a chunk that is worth storing as a difference"
    session.put_chunks([encoded])
    return ident


def _entry(session: Session, name: str, data: bytes) -> Entry:
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    content = _content(session, pieces)
    return Entry(name.encode(), "f", 0o644, 0, 0, 0, size=len(data), content=content)


def _content(session: Session, pieces: list[bytes]) -> bytes | None:
    if not pieces:
        return None
    if len(pieces) == 1:
        return put(session, pieces[0])
    leaves = [_leaf(session, pieces[at : at + LEAF_CHUNKS]) for at in range(0, len(pieces), LEAF_CHUNKS)]
    if len(leaves) == 1:
        return leaves[0][0]
    return session.put_object(FrameKind.FILE, encode_file(FileContent.of(leaves)))


def _leaf(session: Session, pieces: list[bytes]) -> tuple[bytes, int]:
    ids: dict[bytes, int] = {}
    index, offset, length = array("I"), array("I"), array("I")
    for piece in pieces:
        zero = not any(piece)
        index.append(ZERO_RUN if zero else ids.setdefault(put(session, piece), len(ids)))
        offset.append(0)
        length.append(len(piece))
    leaf = Leaf(b"".join(ids), index, offset, length)
    return session.put_object(FrameKind.LEAF, encode_leaf(leaf)), leaf.size


def contents(repository: Repository, ident: bytes) -> dict[str, bytes]:
    """Every file of a snapshot that `save` made. CorruptError."""
    tree = repository.store.tree(repository.snapshot(ident).root)
    return {entry.name.decode(): read(repository, entry.content) for entry in tree.entries}


def read(repository: Repository, content: bytes | None) -> bytes:
    """The bytes of a content id. CorruptError."""
    if content is None:
        return b""
    match repository.store.kind_of(content):
        case FrameKind.CHUNK:
            return bytes(chunks(repository, [content])[0])
        case FrameKind.LEAF:
            return _read_leaf(repository, repository.store.leaf(content))
        case _:
            leaves = repository.store.leaves([leaf for leaf, _ in repository.store.file(content).leaves()])
            return b"".join(_read_leaf(repository, leaf) for leaf in leaves)


def chunks(repository: Repository, ids: Sequence[bytes]) -> list[Plain]:
    """Plain bytes of chunks."""

    def fetch(wanted: Sequence[bytes]) -> list[Plain]:
        return [
            chunk_codec.decode(frame, fetch, repository.store.crypt) for frame in repository.store.get_chunks(wanted)
        ]

    return fetch(ids)


def _read_leaf(repository: Repository, leaf: Leaf) -> bytes:
    plain = chunks(repository, leaf.chunk_ids())
    parts = []
    for index, offset, length in zip(leaf.index, leaf.offset, leaf.length, strict=True):
        parts.append(bytes(length) if index == ZERO_RUN else bytes(plain[index][offset : offset + length]))
    return b"".join(parts)


def pack_paths(repository: Repository) -> list[Path]:
    """The pack files there are."""
    return sorted(repository.directory.packs.glob("*.pack"))


def damage(path: Path, offset: int) -> None:
    """Turn one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x5A]))


def frame_of(repository: Repository, ident: bytes) -> tuple[Path, int]:
    """The pack and offset of a chunk's or object's frame."""
    from ijfs_engine.format.place import Place
    from ijfs_engine.storage.index import CHUNKS, OBJECTS
    from ijfs_engine.storage.pack import pack_path

    with repository.index.read() as view:
        row = view.get(CHUNKS, ident) or view.get(OBJECTS, ident)
    assert row is not None
    place = Place.decode(row)
    return pack_path(repository.directory.packs, place.pack), place.offset
