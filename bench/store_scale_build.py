"""A made-up repository of many snapshots: `python -m bench.store_scale_build DIR --programs N`, for store_scale.py.

A program is saved 20 times. Its image has 8,192 chunks in 128 leaves; each later save has another 20 leaves in which 31
of the 64 chunks are new (every fourth of them a difference), a new pagemap, a new file, and all the objects that lead
there: 20,038 chunks and 608 objects a program, 10 million chunks for 500. Every frame is a real one and every id is
right, so gc, fsck and the mount find what they would find elsewhere; but a chunk holds 8 bytes, so that 10 million take
1 GB, and what is measured is the work per chunk. Rows go in as those of saves do, in random order of ids.
"""

from __future__ import annotations

import argparse
import random
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import zstandard

from ijfs_engine import ObjectId, Repository, Snapshot
from ijfs_engine.format.frames import (
    Codec,
    EncodedChunk,
    FrameKind,
    chunk_id,
    encode_header,
    object_id,
    pack_bases,
    padding,
)
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import (
    Entry,
    FileContent,
    Leaf,
    Tree,
    encode_file,
    encode_leaf,
    encode_snapshot,
    encode_tree,
)
from ijfs_engine.storage.index import (
    BASES,
    CHUNKS,
    OBJECTS,
    PACK_KEY,
    PACK_ROW,
    PACKS,
    SIDECARS,
    SNAPSHOTS,
    U64,
    Update,
)
from ijfs_engine.storage.journal import Record, SnapshotAdded
from ijfs_engine.storage.new_pack import new_pack
from ijfs_engine.storage.pack import DATA_PACK, SIDECAR_PACK, PackWriter
from ijfs_engine.storage.refs import branch_key, log_records, move_ref, tag_key
from ijfs_engine.storage.session import compress

SAVES: Final = 20
LEAVES: Final = 128
PER_LEAF: Final = 64
CHANGED_LEAVES: Final = 20
NEW_PER_LEAF: Final = 31
CHUNK_BYTES: Final = 8
CHUNKS_PER_PROGRAM: Final = LEAVES * PER_LEAF + (SAVES - 1) * CHANGED_LEAVES * NEW_PER_LEAF + 2 * SAVES + 26
TAGGED_EVERY: Final = 10
DIFFERENT_EVERY: Final = 4
DEEPEST: Final = 4

_PACK_BYTES: Final = 20 << 20
"""More than what gc takes for a small pack."""
_ROWS: Final = 500_000
"""Index rows held before they go in."""
_SLICES: Final = 16


class Chunk(NamedTuple):
    """A chunk that was stored, and how many others are decoded to read it."""

    id: bytes
    plain: bytes
    depth: int


class Builder:
    """Writes frames into packs and their rows into the index."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._rows: dict[bytes, list[tuple[bytes, bytes]]] = {CHUNKS: [], BASES: [], OBJECTS: [], SIDECARS: []}
        self._writers: dict[int, PackWriter] = {}
        self._finished: list[PackWriter] = []
        self._made = 0
        self._zstd = zstandard.ZstdCompressor(level=1)

    def chunk(self, base: Chunk | None = None) -> Chunk:
        """A new chunk; stored as the difference to `base` now and then."""
        self._made += 1
        plain = self._made.to_bytes(CHUNK_BYTES, "little")
        ident = chunk_id(plain)
        encoded = EncodedChunk(ident, Codec.RAW, CHUNK_BYTES, plain)
        if base is not None and base.depth < DEEPEST and self._made % DIFFERENT_EVERY == 0:
            change = self._zstd.compress(bytes(a ^ b for a, b in zip(plain, base.plain, strict=True)))
            bases = pack_bases([(base.id, 0, CHUNK_BYTES)])
            encoded = EncodedChunk(ident, Codec.XOR_ZSTD, CHUNK_BYTES, change, bases, base.depth + 1)
            self._rows[BASES].append((ident, base.id))
        self._put(CHUNKS, DATA_PACK, FrameKind.CHUNK, encoded, encoded.codec)
        return Chunk(ident, plain, encoded.depth)

    def object(self, kind: int, plain: bytes) -> ObjectId:
        """An object that is not there yet; its id."""
        ident = object_id(kind, plain)
        self._put(OBJECTS, DATA_PACK, kind, compress(ident, plain), kind)
        return ident

    def leaf(self, chunks: list[Chunk]) -> ObjectId:
        """A leaf of these chunks, with fingerprints."""
        count = len(chunks)
        columns = (array("I", range(count)), array("I", bytes(4 * count)), array("I", [CHUNK_BYTES] * count))
        ident = self.object(FrameKind.LEAF, encode_leaf(Leaf(b"".join(chunk.id for chunk in chunks), *columns)))
        sidecar = EncodedChunk(ident, Codec.RAW, CHUNK_BYTES, bytes(CHUNK_BYTES))
        self._put(SIDECARS, SIDECAR_PACK, FrameKind.SIDECAR, sidecar, FrameKind.SIDECAR)
        return ident

    def commit(self, saves: list[Snapshot], branch: str) -> None:
        """List snapshots, with a branch at the last of them and some tags."""
        self._repository.index.write(partial(self._list, saves=saves, branch=branch))

    def _list(self, update: Update, saves: list[Snapshot], branch: str) -> None:
        records: list[Record] = []
        for number, one in enumerate(saves):
            update.put(SNAPSHOTS, one.id, U64.pack(one.created_ns))
            records.append(SnapshotAdded(one.id, one.created_ns))
            if number % TAGGED_EVERY == TAGGED_EVERY // 2:
                records.append(move_ref(update, tag_key(f"{branch}-{number}"), None, one.id, "tag"))
        records.append(move_ref(update, branch_key(branch), None, saves[-1].id, "save"))
        log_records(update, self._repository.journal, records)

    def flush(self) -> None:
        """Everything into the index, in slices by id, as a session does."""
        self._finished += self._writers.values()
        self._writers = {}
        for writer in self._finished:
            writer.finish(sync=False)
        self._repository.index.write(self._put_packs)
        for table, rows in self._rows.items():
            rows.sort()
            for at in range(_SLICES):
                part = rows[len(rows) * at // _SLICES : len(rows) * (at + 1) // _SLICES]
                self._repository.index.write(partial(Update.put_many, table=table, rows=part))
        for writer in self._finished:
            writer.close()
        self._finished = []
        self._rows = {table: [] for table in self._rows}

    def _put_packs(self, update: Update) -> None:
        for writer in self._finished:
            update.put(PACKS, PACK_KEY.pack(writer.number), PACK_ROW.pack(writer.kind, writer.size))

    def _put(self, table: bytes, pack: int, kind: int, chunk: EncodedChunk, tag: int) -> None:
        header = encode_header(kind, chunk)
        writer = self._writer(pack)
        offset = writer.append(header, chunk.payload)
        span = len(header) + len(chunk.payload)
        self._rows[table].append(
            (chunk.id, Place(writer.number, offset, span, chunk.plain_size, tag, chunk.depth).encode())
        )
        if writer.size + padding(span) > _PACK_BYTES:
            self._finished.append(self._writers.pop(pack))
            if sum(map(len, self._rows.values())) > _ROWS:
                self.flush()

    def _writer(self, kind: int) -> PackWriter:
        if kind not in self._writers:
            self._writers[kind] = new_pack(self._repository.index, self._repository.directory, kind)
        return self._writers[kind]


def build(path: Path, programs: int) -> None:
    """A repository of so many programs, each on a branch of its own."""
    with Repository.init(path) as repository:
        builder = Builder(repository)
        lines = []
        for number in range(programs):
            rng = random.Random(number)
            lines.append((list(_saves(builder, rng, number)), f"program-{number:04}"))
        builder.flush()
        for saves, branch in lines:
            builder.commit(saves, branch)


def _saves(builder: Builder, rng: random.Random, program: int) -> Iterator[Snapshot]:
    leaves = [[builder.chunk() for _ in range(PER_LEAF)] for _ in range(LEAVES)]
    stored = [builder.leaf(chunks) for chunks in leaves]
    fixed = [_entry(f"file-{number:02}", builder.chunk().id) for number in range(26)]
    parent: tuple[ObjectId, ...] = ()
    for save in range(SAVES):
        for at in rng.sample(range(LEAVES), CHANGED_LEAVES if save else 0):
            for place in rng.sample(range(PER_LEAF), NEW_PER_LEAF):
                leaves[at][place] = builder.chunk(leaves[at][place])
            stored[at] = builder.leaf(leaves[at])
        pagemap, changing = builder.chunk().id, builder.chunk().id
        pages = builder.object(
            FrameKind.FILE, encode_file(FileContent.of([(leaf, PER_LEAF * CHUNK_BYTES) for leaf in stored]))
        )
        size = LEAVES * PER_LEAF * CHUNK_BYTES
        images = _tree(builder, [_entry("pagemap-1.img", pagemap), _entry("pages-1.img", pages, size=size)])
        files = _tree(builder, [_entry("changing", changing), *fixed])
        root = _tree(builder, [_entry("files", files, kind="d"), _entry("images", images, kind="d")])
        created = (program * SAVES + save) * 1_000_000_000
        blank = Snapshot(b"", root, parent, created, f"save {save} of program {program}", {}, size)
        ident = builder.object(FrameKind.SNAPSHOT, encode_snapshot(blank))
        parent = (ident,)
        yield msgspec.structs.replace(blank, id=ident)


def _tree(builder: Builder, entries: list[Entry]) -> ObjectId:
    return builder.object(FrameKind.TREE, encode_tree(Tree(tuple(entries))))


def _entry(name: str, content: ObjectId, *, kind: str = "f", size: int = CHUNK_BYTES) -> Entry:
    mode = 0o755 if kind == "d" else 0o644
    return Entry(name.encode(), kind, mode, 0, 0, 0, size=0 if kind == "d" else size, content=content)  # type: ignore[arg-type]


def halve(path: Path) -> None:
    """Take the branch and the tags of every second program away."""
    with Repository.open(path) as repository:
        odd = [name for name in repository.refs.branches() if int(name.split("-")[1]) % 2]
        tags = [name for name in repository.refs.tags() if name.rpartition("-")[0] in odd]
        for name in odd:
            repository.refs.delete_branch(name)
        for name in tags:
            repository.refs.delete_tag(name)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--programs", type=int, default=50)
    parser.add_argument("--halve", action="store_true", help="take half of the names of one away instead")
    options = parser.parse_args()
    if options.halve:
        halve(options.path)
    else:
        build(options.path, options.programs)


if __name__ == "__main__":
    main()
