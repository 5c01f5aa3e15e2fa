"""The engine's ingest measured alone, on images in memory: `python -m bench.store_memory WORK PARENT CHILD`.

A save hands the engine an arena that CRIU has just filled; so does this. No process start, no disk read is in the
figures; the fsync and the transaction that make a snapshot durable are. The yardstick is BLAKE3 in one thread over the
same memory, in turn with the ingest. Prints JSON. `python -m bench.store_memory --repository DIR` instead prints what
the parts of a repository take. A program of its own, so that its memory does not count as the benchmark's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from bench.common import disk_size
from ijfs_engine import Arena, KeptPrints, ObjectId, Repository, Segments, is_pages
from ijfs_engine.format.place import Place
from ijfs_engine.storage.index import CHUNKS, OBJECTS, SIDECARS

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the rounds, in seconds (`add_s`: of `ingest_s`, what came before the commit), and new pack bytes."""

    bytes: int
    parent_bytes: int
    same: float
    blake3_s: float
    first_s: float
    ingest_s: float
    add_s: float
    stored: int
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times BLAKE3's speed."""
        return self.blake3_s / self.ingest_s


def load(directory: Path) -> dict[str, Segments]:
    """The images of a directory in an arena, as a dump leaves them."""
    paths = sorted(path for path in directory.iterdir() if path.is_file())
    arena = Arena(2 * sum(path.stat().st_size for path in paths) + (64 << 20))
    arena.prefault(sum(path.stat().st_size for path in paths))
    images = {}
    for path in paths:
        file = arena.new_file()
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(file.tail(1 << 20)):
                file.advance(count)
        images[path.name] = file.segments()
    return images


def hash_seconds(images: Mapping[str, Segments]) -> float:
    """One thread of BLAKE3 over everything."""
    began = time.perf_counter()
    hasher = blake3(max_threads=1)
    for segments in images.values():
        for piece in segments:
            hasher.update(piece)
    hasher.digest()
    return time.perf_counter() - began


def ingest(
    repository: Repository, images: Mapping[str, Segments], parents: list[ObjectId], kept: KeptPrints | None = None
) -> tuple[ObjectId, float, float]:
    """(the snapshot, seconds in all, seconds before the commit)."""
    began = time.perf_counter()
    with repository.begin(parents, kept=kept) as writer:
        writer.add_images("images", images)
        added = time.perf_counter() - began
        snapshot = writer.commit()
    return snapshot.id, time.perf_counter() - began, added


def same_share(parent: Mapping[str, Segments], child: Mapping[str, Segments]) -> float:
    """Share of the child's pages that the parent's image of the same name holds anywhere."""
    total = same = 0
    for name, segments in child.items():
        if is_pages(name):
            known = set(_pages(parent.get(name, Segments())))
            pages = _pages(segments)
            total += len(pages)
            same += sum(page in known for page in pages)
    return same / max(total, 1)


def _pages(segments: Segments) -> list[bytes]:
    whole = b"".join(segments)
    return [blake3(whole[at : at + 4096]).digest(length=16) for at in range(0, len(whole), 4096)]


def measure(work: Path, parent: Path, child: Path) -> Result:
    """Each round: BLAKE3, a new repository with the parent in it, the child's ingest, as a keeper does both."""
    before, after = load(parent), load(child)
    hashes, firsts, ingests, adds, stored = [], [], [], [], 0
    for _ in range(ROUNDS):
        shutil.rmtree(work, ignore_errors=True)
        kept = KeptPrints()
        with Repository.init(work) as repository:
            base, first, _ = ingest(repository, before, [], kept)
            size = repository.stats().pack_bytes
            os.sync()
            hashes.append(hash_seconds(after))
            _, seconds, added = ingest(repository, after, [base], kept)
            stored = repository.stats().pack_bytes - size
        firsts.append(first)
        ingests.append(seconds)
        adds.append(added)
    shutil.rmtree(work, ignore_errors=True)
    return Result(
        bytes=sum(one.nbytes for one in after.values()),
        parent_bytes=sum(one.nbytes for one in before.values()),
        same=same_share(before, after),
        blake3_s=statistics.median(hashes),
        first_s=statistics.median(firsts),
        ingest_s=statistics.median(ingests),
        add_s=statistics.median(adds),
        stored=stored,
        rounds=ROUNDS,
    )


def parts(path: Path) -> dict[str, int]:
    """Bytes of chunks, of objects (page tables, trees, snapshots), of fingerprints, of the index, and of it all."""
    with Repository.open(path) as repository:
        tables = {"chunks": CHUNKS, "objects": OBJECTS, "fingerprints": SIDECARS}
        with repository.index.read() as view:
            sizes = {
                name: sum(Place.decode(row).on_disk for _, row in view.items(table)) for name, table in tables.items()
            }
        stats = repository.stats()
    return {**sizes, "index": stats.index_bytes, "packs": stats.pack_bytes, "all": disk_size(path).allocated}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--repository", type=Path)
    options = parser.parse_args()
    page: dict[str, Any] = parts(options.repository) if options.repository else asdict(measure(*options.paths))
    print(json.dumps(page))


if __name__ == "__main__":
    main()
