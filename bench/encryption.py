"""What encryption costs: the same images stored and read by a plain repository and an encrypted one, turn by turn.

    python -m bench.encryption [--mib 500] [--rounds 5] [--dir DIR] [--json FILE]

Images are those of `store_quick.py`. Each round stores a first image, a sibling with 7% new pages and the image with
one word changed in 17% of its pages, then reads the first back; plain and encrypted take turns in who begins. Ratios
are of the best rounds, by the clock and by processor time: the latter says more where other programs run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.store_quick import MIB, image_set, make_image, scattered, sibling
from ijfs_engine import ObjectId, Repository, wrap_for_passphrase

T = TypeVar("T")
TARGET = 0.85
STEPS = ("first image", "sibling, 7% new", "17% of pages touched", "read back")


class Turn:
    """One repository, made, filled and read; (seconds, processor seconds) by step."""

    def __init__(self, where: Path, *, encrypted: bool) -> None:
        self._where = where
        way = (lambda ring: wrap_for_passphrase(ring, "main", "bench")) if encrypted else None
        self._repository = Repository.init(where, way_in=way)
        self.took: dict[str, tuple[float, float]] = {}

    def run(self, image: np.ndarray, near: np.ndarray, touched: np.ndarray) -> None:
        """All steps."""
        with self._repository as repository:
            first = self._timed("first image", lambda: self._save(image))
            self._timed("sibling, 7% new", lambda: self._save(near, first))
            self._timed("17% of pages touched", lambda: self._save(touched, first))
            reader = repository.reader()
            file = reader.open(reader.lookup(repository.snapshot(first).root, "images/pages-1.img"))
            out = bytearray(file.size)
            self._timed("read back", lambda: file.read_into(0, memoryview(out)))
            assert out == image.tobytes()
        shutil.rmtree(self._where)

    def _save(self, image: np.ndarray, *parents: ObjectId) -> ObjectId:
        with self._repository.begin(parents) as writer:
            writer.add_images("images", image_set(image))
            return writer.commit().id

    def _timed(self, name: str, call: Callable[[], T]) -> T:
        start, worked = time.perf_counter(), time.process_time()
        done = call()
        self.took[name] = (time.perf_counter() - start, time.process_time() - worked)
        return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["IJFS_KEY_TTL_S"] = "0"
    image = make_image(args.mib * MIB)
    near, touched = sibling(image, 0.07), scattered(image, 0.17)
    rounds: dict[bool, list[Turn]] = {False: [], True: []}
    where = Path(tempfile.mkdtemp(dir=args.dir))
    try:
        for number in range(args.rounds):
            for encrypted in (number % 2 == 0, number % 2 != 0):
                turn = Turn(where / "repo", encrypted=encrypted)
                turn.run(image, near, touched)
                rounds[encrypted].append(turn)
    finally:
        shutil.rmtree(where)
    rows = [_row(step, args.mib * MIB, rounds) for step in STEPS]
    print(f"{args.mib} MiB, {len(os.sched_getaffinity(0))} cores, best of {args.rounds} rounds")
    print(f"{'':24}{'plain GB/s':>12}{'encrypted':>12}{'ratio':>8}{'by processor':>14}")
    for row in rows:
        print(
            f"{row['step']:24}{row['plain']:12.2f}{row['encrypted']:12.2f}{row['ratio']:8.2f}{row['by_processor']:14.2f}"
        )
    print(f"wanted: {TARGET}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def _row(step: str, size: int, rounds: dict[bool, list[Turn]]) -> dict[str, str | float]:
    plain, sealed = (
        [min(turn.took[step][which] for turn in rounds[encrypted]) for which in (0, 1)] for encrypted in (False, True)
    )
    return {
        "step": step,
        "plain": size / plain[0] / 1e9,
        "encrypted": size / sealed[0] / 1e9,
        "ratio": plain[0] / sealed[0],
        "by_processor": plain[1] / sealed[1],
    }


if __name__ == "__main__":
    main()
