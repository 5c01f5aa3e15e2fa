"""Each contestant of the store benchmark stores and restores what it is given; small files stand for images."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.common import empty_directory, measure, same_files
from bench.store_contestants import ALL, Contestant
from bench.store_tree import Snapshot


def snapshot(tree: Path, name: str, parent: str | None, seed: int) -> Snapshot:
    images = tree / name / "images"
    images.mkdir(parents=True)
    (images / "pages-1.img").write_bytes(random.Random(seed).randbytes(300_000))
    for known in ("inventory.img", "pstree.img"):  # by these ijfs knows a directory of images
        (images / known).write_bytes(b"none")
    (images / "same.img").write_bytes(b"the same in each" * 1000)
    return Snapshot(name, parent, images, 316_000)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_what_is_restored_is_what_was_stored(kind: type[Contestant], tmp_path: Path) -> None:
    contestant = kind(tmp_path / "home")
    if contestant.version() is None:
        pytest.skip(f"{contestant.version_command[0]} is not installed")
    snapshots = [snapshot(tmp_path / "tree", "one", None, 1), snapshot(tmp_path / "tree", "two", "one", 2)]
    for command in (*contestant.prepare(), *contestant.store(snapshots)):
        measure(command)
    for one in snapshots:
        with empty_directory(tmp_path / "target") as target:
            measure(contestant.restore(one, target))
            assert same_files(one.images, target)
