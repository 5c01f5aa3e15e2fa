"""What killed keepers left goes; what somebody else put beside it stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from waiting import eventually

from ijfs.live.client.claim import claim
from ijfs.live.errors import InstanceExistsError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.process.keeper_lock import KeeperLock, is_kept
from ijfs.live.sandbox.cleanup import sweep_criu, sweep_left


@pytest.fixture
def live(tmp_path: Path) -> Path:
    directory = tmp_path / "repo" / "live"
    directory.mkdir(parents=True)
    return directory


def remains(live: Path, name: str) -> Path:
    """The directory of an instance whose keeper was killed before it wrote a record."""
    paths = InstancePaths(live / name)
    (paths.root / "box-0").mkdir(parents=True)
    paths.lock.touch()
    return paths.root


def test_remains_of_a_keeper_are_swept_and_nothing_else(live: Path, tmp_path: Path) -> None:
    left, empty = remains(live, "left"), live / "empty"
    elsewhere = remains(tmp_path, "elsewhere")
    empty.mkdir()
    (live / "backup").mkdir()
    (live / "backup" / "precious").write_text("somebody's own")
    (live / "link").symlink_to(elsewhere)
    (live / ".no-instance").mkdir()
    (live / "notes").write_text("somebody's own")
    held = InstancePaths(remains(live, "held"))
    with KeeperLock.take(held) or pytest.fail("nobody has it"):
        sweep_left(live)
    assert not left.exists()
    assert not empty.exists()
    assert sorted(os.listdir(live)) == [".no-instance", "backup", "held", "link", "notes"]
    assert (live / "backup" / "precious").read_text() == "somebody's own"
    assert (elsewhere / "keeper.lock").exists()


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_an_instance_does_not_take_the_place_of_somebodys_own(live: Path, tmp_path: Path, kind: str) -> None:
    place = live / "mine"
    if kind == "directory":
        place.mkdir()
        (place / "precious").write_text("somebody's own")
    elif kind == "file":
        place.write_text("somebody's own")
    else:
        place.symlink_to(tmp_path)
    with pytest.raises(InstanceExistsError, match="is in the way, and ijfs did not make it"):
        claim(live.parent, "mine")
    assert os.path.lexists(place)
    assert kind != "directory" or (place / "precious").exists()


def test_the_remains_of_that_name_make_room_for_an_instance(live: Path) -> None:
    remains(live, "again")
    claimed = claim(live.parent, "again")
    claimed.make_room()
    assert list(claimed.paths.root.iterdir()) == [claimed.paths.lock]
    claimed.give_up()
    assert not claimed.paths.root.exists()


def test_to_ask_for_a_keeper_makes_no_lock(live: Path) -> None:
    (live / "nobody").mkdir()
    assert not is_kept(InstancePaths(live / "nobody"))
    assert list((live / "nobody").iterdir()) == []


def test_what_a_killed_criu_left_goes_unless_something_is_in_it(tmp_path: Path) -> None:
    left, used, other = (tmp_path / name for name in (".criu.mntns.left", ".criu.mntns.used", ".other"))
    for path in (left, used, other):
        path.mkdir()
    (used / "file").touch()

    def swept() -> bool:
        sweep_criu(tmp_path)  # does nothing while any CRIU runs on this machine
        return not left.exists()

    assert eventually(swept, 60)
    assert (used / "file").exists()
    assert other.exists()
