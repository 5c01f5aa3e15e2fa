"""How fast and how small the store is, in a minute: synthetic process images against BLAKE3 and cp, in the same run.

    python bench/store_quick.py [--mib 500] [--json FILE] [--dir DIR]

Images are made in memory: a third text-like, a third float weights, a sixth noise, a sixth zeros. Stored are the image,
the same again, a sibling with 7% new pages, one with 1% of its words changed in scattered places, and the image without
a named parent; then it is read back. `make bench-store` measures with real kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from blake3 import blake3

from ijfs_engine import COMMON_MAGIC, PAGEMAP_MAGIC, ObjectId, Repository, Snapshot, export_tree

PAGE = 4096
MIB = 1 << 20
BASE = 0x7F00_0000_0000


def make_image(size: int) -> np.ndarray:
    """Bytes like those of a data scientist's kernel: half compressible, some floats, some zeros."""
    rng = np.random.default_rng(1)
    words = [b"import", b"numpy", b"self", b"return", b"0.125", b"value", b" ", b"\n", b"\0\0\0\0", b"def f(x):"]
    text = b"".join(random.Random(2).choices(words, k=600_000))
    third = size // 3 // PAGE * PAGE
    parts = [
        np.frombuffer((text * (third // len(text) + 1))[:third], np.uint8).copy(),
        rng.normal(0, 0.02, third // 4).astype(np.float32).view(np.uint8),
        rng.integers(0, 256, third // 2 // PAGE * PAGE, np.uint8),
    ]
    # No two pages of the text are equal, as in a heap: each has a header of its own.
    parts[0][::PAGE] = rng.integers(0, 256, len(parts[0][::PAGE]), np.uint8)
    parts[0][1::PAGE] = rng.integers(0, 256, len(parts[0][1::PAGE]), np.uint8)
    used = sum(map(len, parts))
    return np.concatenate([*parts, np.zeros(size - used, np.uint8)])


def sibling(image: np.ndarray, share: float) -> np.ndarray:
    """Runs of 64 pages of noise in `share` of the image."""
    rng = np.random.default_rng(3)
    out = image.copy()
    run = 64 * PAGE
    for at in rng.choice(len(image) // run, int(len(image) * share / run), replace=False):
        out[at * run : (at + 1) * run] = rng.integers(0, 256, run, np.uint8)
    return out


def scattered(image: np.ndarray, share: float) -> np.ndarray:
    """`share` of the pages with one changed word each."""
    rng = np.random.default_rng(4)
    out = image.copy()
    pages = rng.choice(len(image) // PAGE, int(len(image) * share / PAGE), replace=False)
    out[pages * PAGE + 1000] ^= 0x55
    return out


def image_set(image: np.ndarray) -> dict[str, bytes | memoryview]:
    """One process with one mapping of these bytes, as CRIU would write it."""

    def message(*fields: tuple[int, int]) -> bytes:
        body = bytearray()
        for number, value in fields:
            for part in (number << 3, value):
                while part > 0x7F:
                    body.append(part & 0x7F | 0x80)
                    part >>= 7
                body.append(part)
        return struct.pack("<I", len(body)) + bytes(body)

    head = struct.pack("<II", COMMON_MAGIC, PAGEMAP_MAGIC) + message((1, 1))
    pagemap = head + message((1, BASE), (2, len(image) // PAGE), (4, 4))
    return {"pagemap-7.img": pagemap, "pages-1.img": memoryview(image), "inventory.img": b"i", "pstree.img": b"p"}


def timed(call: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Bench:
    """One repository, and a table that grows."""

    def __init__(self, where: Path, size: int, rounds: int) -> None:
        self.where = where
        self.size = size
        self.rounds = rounds
        self.repository = Repository.init(where / "repo")
        self.rows: list[dict[str, object]] = []

    def save(self, files: Mapping[str, bytes | memoryview], *parents: ObjectId) -> Snapshot:
        with self.repository.begin(parents) as writer:
            writer.add_images("images", files)
            return writer.commit()

    def measure(self, name: str, image: np.ndarray, *parents: ObjectId) -> Snapshot:
        """Store an image; the first time counts for the bytes, the best time for the speed."""
        before = self.repository.stats().pack_bytes
        best, work, snapshot = float("inf"), float("inf"), None
        for _ in range(self.rounds if parents else 1):
            start, cpu = time.perf_counter(), time.process_time()
            made = self.save(image_set(image), *parents)
            best = min(best, time.perf_counter() - start)
            work = min(work, time.process_time() - cpu)
            snapshot = snapshot or made
            if snapshot is made:
                stored = self.repository.stats().pack_bytes - before
        assert snapshot is not None
        self.row(name, best, stored, work)
        return snapshot

    def row(self, name: str, seconds: float, stored: int | None = None, cpu_s: float | None = None) -> None:
        """One line of the table; CPU time tells more than wall time where other programs run."""
        per_core = self.size / cpu_s / 1e6 if cpu_s else None
        speed = self.size / seconds / 1e6
        self.rows.append({"what": name, "s": seconds, "MB/s": speed, "MB/s/core": per_core, "stored": stored})


def run(args: argparse.Namespace, where: Path) -> list[dict[str, object]]:
    size = args.mib * MIB
    image = make_image(size)
    bench = Bench(where, size, args.rounds)
    bench.row("blake3, one thread", min(timed(lambda: blake3(image).digest()) for _ in range(3)))
    (where / "raw").write_bytes(image)
    bench.row("cp", min(timed(lambda: shutil.copyfile(where / "raw", where / "copy")) for _ in range(2)), size)
    first = bench.measure("first", image)
    bench.measure("unchanged", image, first.id)
    bench.measure("sibling, 93% the same", sibling(image, 0.07), first.id)
    bench.measure("1% of pages, one word each", scattered(image, 0.01), first.id)
    bench.measure("17% of pages, one word each", scattered(image, 0.17), first.id)
    bench.measure("the same, no parent named", image)
    reader = bench.repository.reader()
    images = reader.lookup(first.root, "images")
    out = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        bench.row("export into memory", timed(lambda: export_tree(reader, images.content or b"", out / "images")))
        assert (out / "images/pages-1.img").read_bytes() == image.tobytes()
        (out / "raw").write_bytes(image)
        bench.row("cp into memory", timed(lambda: shutil.copyfile(out / "raw", out / "copy")))
    finally:
        shutil.rmtree(out)
    return bench.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    where = Path(tempfile.mkdtemp(dir=args.dir))
    try:
        rows = run(args, where)
    finally:
        shutil.rmtree(where)
    speeds = {str(row["what"]): float(str(row["MB/s"])) for row in rows}
    print(f"{args.mib} MiB, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}")
    print(f"{'':30}{'MB/s':>8} {'x blake3':>9} {'x cp':>7} {'MB/s core':>10} {'stored MB':>10}")
    for row in rows:
        name, speed = str(row["what"]), float(str(row["MB/s"]))
        stored = f"{float(str(row['stored'])) / 1e6:10.2f}" if row["stored"] is not None else ""
        core = f"{float(str(row['MB/s/core'])):10.0f}" if row["MB/s/core"] is not None else " " * 10
        ratios = f"{speed / speeds['blake3, one thread']:9.2f} {speed / speeds['cp']:7.2f}"
        print(f"{name:30}{speed:8.0f} {ratios} {core} {stored}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak RSS {peak:.0f} MiB, of which {4 * args.mib} and more are this program's own images", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps({"mib": args.mib, "machine": platform.processor(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
