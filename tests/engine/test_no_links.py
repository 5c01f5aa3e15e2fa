"""A link in a repository leads nowhere: what it names is neither read nor written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from storekit import contents, pack_paths, save

from ijfs_engine import CorruptError, IjfsError, Repository, StorageError

FILES = {"small": b"a few bytes", "large": bytes(range(256)) * 200}
VICTIM = b"a letter, and nothing of ijfs"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with Repository.init(tmp_path / "R") as repository:
        save(repository, FILES, branch="main")
    return tmp_path / "R"


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    "name",
    ["format", "journal", "secret", "reserve", "locks/gc", "index/data.mdb", "index/lock.mdb", "index/checked"],
)
def test_a_link_in_the_place_of_a_file_is_refused_before_anything_is_opened(
    place: Path, name: str, damaged: bool
) -> None:
    victim = place.with_name("victim")
    victim.write_bytes(VICTIM)
    (place / name).unlink(missing_ok=True)
    (place / name).symlink_to(victim)
    with pytest.raises(StorageError, match=f"{name} is a symbolic link, no regular file") as refused:
        Repository.open(place, damaged=damaged)
    assert refused.value.hint
    assert victim.read_bytes() == VICTIM


@pytest.mark.parametrize(
    "name", ["index", "packs", "sessions", "pins", "locks", "remotes", "live", "bases", "deployments", "serve"]
)
def test_a_link_in_the_place_of_a_directory_is_refused(place: Path, name: str) -> None:
    outside = place.with_name("outside")
    (place / name).rename(outside) if (place / name).exists() else outside.mkdir()
    (place / name).symlink_to(outside)
    before = sorted(os.listdir(outside))
    with pytest.raises(StorageError, match=f"{name} is a symbolic link, no directory"):
        Repository.open(place)
    assert sorted(os.listdir(outside)) == before


def test_the_way_to_a_repository_may_be_a_link(place: Path) -> None:
    place.with_name("way").symlink_to(place)
    with Repository.open(place.with_name("way")) as repository:
        assert contents(repository, repository.resolve("main")) == FILES


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_a_pack_that_is_no_regular_file_is_neither_read_nor_repaired(place: Path, kind: str) -> None:
    with Repository.open(place) as repository:
        pack = pack_paths(repository)[0]
    kept = pack.rename(place.with_name("kept"))
    victim = place.with_name("victim")
    victim.write_bytes(VICTIM)
    {"link": lambda: pack.symlink_to(victim), "directory": pack.mkdir, "pipe": lambda: os.mkfifo(pack)}[kind]()
    with Repository.open(place) as repository:
        with pytest.raises(CorruptError):
            contents(repository, repository.resolve("main"))
        with pytest.raises(CorruptError) as refused:
            repository.gc()
        assert "ijfs rm" not in str(refused.value.hint)
    if kind != "directory":
        with pytest.raises(StorageError, match="no regular file"):
            Repository.open(place, damaged=True)
    assert victim.read_bytes() == VICTIM
    pack.rmdir() if kind == "directory" else pack.unlink()
    kept.rename(pack)
    with Repository.open(place, damaged=True) as repository:
        assert not repository.fsck(repair=True).damage
        assert contents(repository, repository.resolve("main")) == FILES


def test_a_file_format_that_is_a_directory_is_refused_with_a_way_out(place: Path) -> None:
    (place / "format").unlink()
    (place / "format").mkdir()
    with pytest.raises(IjfsError, match="format is a directory, no regular file") as refused:
        Repository.open(place, damaged=True)
    assert refused.value.hint
