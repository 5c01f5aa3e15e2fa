"""An export of a damaged snapshot: all that can be read is on the disk at its end, and what is not is said."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fuzz_seeds import exported
from storekit import damage, frame_of

from ijfs_engine import CorruptError, Repository, Snapshot, export_tree, import_directory
from ijfs_engine.format.frames import HEADER_SIZE, FrameKind
from ijfs_engine.format.records import ObjectId

RNG = random.Random(21)
SMALL = {f"small/{number:02}": RNG.randbytes(900) for number in range(30)}
FILES = {**SMALL, "large": RNG.randbytes(9 << 20), "deep/in/here": RNG.randbytes(100_000), "deep/note": b"some words"}


@pytest.fixture
def saved(repository: Repository, tmp_path: Path) -> Snapshot:
    """The files, and another name of the large one that comes after it, in another directory."""
    source = tmp_path / "source"
    for name, data in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    os.link(source / "large", source / "small" / "same")
    os.link(source / "large", source / "z")
    return import_directory(repository, source)


def spoil(repository: Repository, snapshot: Snapshot, name: str) -> None:
    """Damage a file's bytes, or a directory's record."""
    reader = repository.reader()
    content = reader.lookup(snapshot.root, f"files/{name}").content
    assert content is not None
    path, offset = frame_of(repository, first_chunk(repository, content))
    damage(path, offset + HEADER_SIZE + 3)


def first_chunk(repository: Repository, content: ObjectId) -> ObjectId:
    store = repository.store
    match store.kind_of(content):
        case FrameKind.FILE:
            return first_chunk(repository, next(iter(store.file(content).leaves()))[0])
        case FrameKind.LEAF:
            return store.leaf(content).ids[:32]
    return content


@pytest.mark.parametrize(
    ("spoiled", "gone"),
    [
        (["small/07"], {"small/07"}),
        (["small/07", "small/21", "deep/in/here"], {"small/07", "small/21", "deep/in/here"}),
        (["large"], {"large", "small/same", "z"}),
        (["deep/in"], {"deep/in/here"}),
        (["small"], {*SMALL, "small/same"}),
    ],
)
def test_all_that_can_be_read_is_exported(
    repository: Repository, saved: Snapshot, spoiled: list[str], gone: set[str]
) -> None:
    target = repository.path.with_name("target")
    whole = exported(repository, saved.id.hex(), target)
    assert "error" not in whole
    for name in spoiled:
        spoil(repository, saved, name)
    found = exported(repository, saved.id.hex(), target)
    assert found["error"].startswith("CorruptError: ")
    assert any(f"{target}/files/{name}" in found["error"] for name in gone | set(spoiled))
    lost = {f"/files/{name}" for name in gone}
    assert found["paths"].keys() == whole["paths"].keys() - lost
    for path in found["paths"].keys() & {f"/files/{name}" for name in FILES}:
        assert found["paths"][path].split()[-2:] == whole["paths"][path].split()[-2:]  # size and hash


def test_how_much_is_damaged_and_what_is_there_is_said(repository: Repository, saved: Snapshot, tmp_path: Path) -> None:
    for name in ("small/07", "small/21", "deep/in/here"):
        spoil(repository, saved, name)
    with pytest.raises(CorruptError) as caught:
        export_tree(repository.reader(), saved.root, tmp_path / "target")
    assert "(and 2 more are damaged)" in str(caught.value)
    assert f"{len(FILES) + 2 - 3} of its files, each of them whole, are in {tmp_path / 'target'}" in str(caught.value)


def test_what_nobody_sees_ends_at_the_first_damage(repository: Repository, saved: Snapshot, tmp_path: Path) -> None:
    """A restore, which throws it away."""
    for name in ("deep/in", "small"):
        spoil(repository, saved, name)
    with pytest.raises(CorruptError) as caught:
        export_tree(repository.reader(), saved.root, tmp_path / "target", unseen=True)
    assert "more are damaged" not in str(caught.value)
