"""A full disk is told as one, loses nothing, and is no dead end: what frees space works on it without a free byte.

The real thing: a filesystem of 40 MB, filled. `small_disk.py` goes through all levels (`make test-full-disk`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from full_disks import empty, fill, mounted
from small_disk import ALWAYS, KEPT, VERBS, place, prepare, run, trial
from storekit import contents, save

from ijfs_engine import Repository, StorageError
from ijfs_engine.storage.index import Index
from ijfs_engine.storage.reserve import Reserve

pytestmark = pytest.mark.root


@pytest.fixture(params=["tmpfs", "ext4"])
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of small disk."""
    return str(request.param)


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A small disk, and a repository to copy there."""
    where = tmp_path_factory.mktemp("full")
    with mounted(request.param, where) as disk:
        yield disk, prepare(where)


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_without_a_free_byte(small: tuple[Path, Path], verb: str) -> None:
    disk, template = small
    code = trial(template, disk, verb, 0)
    assert code == 0 or verb not in ALWAYS


@pytest.mark.parametrize(
    ("verb", "left"), [("tag", 0), ("rm", 4), ("gc", 16), ("import", 100), ("import", 200), ("lost index", 0)]
)
def test_a_full_disk_without_a_reserve_is_told(small: tuple[Path, Path], verb: str, left: int) -> None:
    disk, template = small
    assert trial(template, disk, verb, left << 10, reserve=False) == 1


def test_the_reserve_comes_back_when_there_is_room(small: tuple[Path, Path]) -> None:
    disk, template = small
    path = place(template, disk, reserve=True)
    reserve = path / "reserve"
    size = reserve.stat().st_blocks
    fill(disk, 0)
    assert run(path, "rm", disk, disk / "none").returncode == 0
    assert not reserve.exists()
    empty(disk)
    assert run(path, "gc", disk, disk / "none").returncode == 0
    assert reserve.stat().st_blocks == size


def test_a_save_does_not_take_the_reserve(small: tuple[Path, Path]) -> None:
    disk, template = small
    path = place(template, disk, reserve=True)
    fill(disk, 0)
    done = run(path, "import", template.parent / "folder", disk / "none")
    assert done.returncode == 1
    assert (path / "reserve").exists()


def test_gc_frees_nearly_all_of_a_full_disk(tmp_path: Path, kind: str) -> None:
    """More dead rows than the reserve has room for marks of."""
    with mounted(kind, tmp_path, 100 << 20) as disk:
        with Repository.init(disk / "r") as repository:
            keep = save(repository, KEPT, branch="main")
            dead = save(repository, {str(one): random.Random(one).randbytes(2_000_000) for one in range(36)})
            index = repository.index.size_on_disk()
            repository.remove(dead.id)
        fill(disk, 0)
        with Repository.open(disk / "r") as repository:
            assert index > 3 << 19
            assert repository.gc().freed > 70_000_000
            assert contents(repository, keep.id) == KEPT
            assert repository.directory.reserve.size()


def test_a_small_disk_has_no_reserve(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path, 6 << 20) as disk, Repository.init(disk / "r") as repository:
        assert not repository.directory.reserve.path.exists()


def test_a_reserve_grows_with_the_index_and_goes_once(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.take(0)
    assert reserve.path.stat().st_blocks * 512 >= 2 << 20
    reserve.take(40 << 20)
    assert reserve.path.stat().st_blocks * 512 >= 20 << 20
    assert reserve.give_up()
    assert not reserve.give_up()


def test_an_index_made_on_a_full_disk_is_an_error_and_no_signal(small: tuple[Path, Path]) -> None:
    disk, template = small
    path = place(template, disk, reserve=False)
    (path / "other").mkdir()
    fill(disk, 0)
    with pytest.raises(StorageError, match="No space left"):
        Index.open(path / "other")
    empty(disk)
    Index.open(path / "other").close()
