"""Lock files say who lives, and nothing else can be taken for them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ijfs_engine import LockedError
from ijfs_engine.storage import disk
from ijfs_engine.storage.locks import LockFile, clear_dead, exclusive, live_files, try_take


def test_a_lock_file_is_seen_while_it_is_held_and_gone_after(tmp_path: Path) -> None:
    held = LockFile.create(tmp_path)
    held.write(b"first, and longer")
    held.write(b"what it says")
    assert list(live_files(tmp_path)) == [(held.path, b"what it says")]
    assert try_take(held.path) is None
    held.close()
    held.close()
    assert list(tmp_path.iterdir()) == []
    assert try_take(held.path) is None


def test_a_file_whose_holder_died_is_removed_by_the_next_that_makes_one(tmp_path: Path) -> None:
    dead = tmp_path / "1-0123456789ab"
    dead.write_bytes(b"")
    assert list(live_files(tmp_path)) == []
    assert dead.exists()
    LockFile.create(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_no_lock_file_is_taken_for_one(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    locks = tmp_path / "locks"
    locks.mkdir()
    for name in ("notes", "1-dead", ".1-0123456789ab.swp", "1-0123456789ab~", "1-0123456789AB"):
        (locks / name).write_text("somebody's own")
    (locks / "2-0123456789ab").symlink_to(outside)
    (locks / "3-0123456789ab").mkdir()
    os.mkfifo(locks / "4-0123456789ab")
    before = sorted(locks.iterdir())
    assert list(live_files(locks)) == []
    clear_dead(locks)
    LockFile.create(locks).close()
    assert sorted(locks.iterdir()) == before
    assert outside.read_text() == "precious"


def test_a_directory_of_locks_that_leads_elsewhere_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1-0123456789ab").touch()
    (tmp_path / "locks").symlink_to("elsewhere")
    for look in (live_files, clear_dead):
        with pytest.raises(NotADirectoryError):
            look(tmp_path / "locks")
    assert (tmp_path / "elsewhere" / "1-0123456789ab").exists()


def test_two_that_look_at_a_dead_ones_file_do_not_take_each_other_for_its_holder(tmp_path: Path) -> None:
    (tmp_path / "1-0123456789ab").touch()
    with (tmp_path / "1-0123456789ab").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert list(live_files(tmp_path)) == []


def test_a_file_that_was_taken_for_a_dead_ones_before_its_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the create and the flock nothing tells it from a file whose holder died."""
    create = disk.create
    removed: list[Path] = []

    def create_and_lose_the_first(path: Path) -> int:
        fd = create(path)
        if not removed:
            clear_dead(tmp_path)
            removed.append(path)
        return fd

    monkeypatch.setattr(disk, "create", create_and_lose_the_first)
    held = LockFile.create(tmp_path)
    assert removed
    assert not removed[0].exists()
    assert [path for path, _ in live_files(tmp_path)] == [held.path]
    held.close()


def test_a_lock_that_is_let_go_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = LockFile.create(tmp_path)
    list(live_files(tmp_path))
    held.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_without_standard_input_holds_its_lock(tmp_path: Path) -> None:
    """Its first descriptor is 0."""
    standard_input = os.dup(0)
    os.close(0)
    try:
        with (
            exclusive(tmp_path / "lock", "gc"),
            pytest.raises(LockedError, match="already running"),
            exclusive(tmp_path / "lock", "gc"),
        ):
            pass
    finally:
        os.dup2(standard_input, 0)
        os.close(standard_input)
