"""A full disk costs a verb, never the program or a snapshot: some of what small_disk_live.py goes through.

`make test-full-disk-live` does every verb at every level of free space.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from full_disks import empty, fill
from small_disk_live import ALWAYS, SmallDisk, small_disk

from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]


@pytest.fixture(scope="module")
def small(live_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    """A repository on a tmpfs of 64 MiB, with programs in it."""
    with small_disk("tmpfs", tmp_path_factory.mktemp("full")) as made:
        yield made


@pytest.mark.parametrize(
    ("verb", "left"),
    [
        ("save", 0),
        ("save", 64),
        ("save --no-wait", 64),
        ("run", 0),
        ("restore", 4),
        ("restore --eager", 16),
        ("fork", 0),
        ("base import", 16),
        *((verb, 0) for verb in sorted(ALWAYS)),
    ],
)
def test_what_finds_no_room_leaves_everything_as_it_was(small: SmallDisk, verb: str, left: int) -> None:
    """A verb that needs none is done."""
    done = small.trial(verb, left << 10)
    assert done.code == (0 if verb in ALWAYS else 1), done


def test_removing_makes_room_for_the_next_save_on_a_disk_without_a_free_byte(small: SmallDisk) -> None:
    with Repository.open(small.env.repo) as repository:
        kept = {ident.hex() for ident in repository.refs.branches().values()}
    small.write("main", 3_000_000)
    assert small.do(["save", "main", "-m", "large"]).code == 0
    small.write("main", 500_000)
    assert small.do(["save", "main", "-m", "smaller"]).code == 0
    fill(small.disk, 0)
    small.write("main", 400_000)
    refused = small.do(["save", "main", "-m", "no room"])
    assert refused.code == 1
    assert "ijfs gc" in refused.said
    assert small.do(["rm", "main~1"]).code == 0
    assert small.do(["gc"]).code == 0
    assert small.do(["gc"]).code == 0
    done = small.do(["save", "main", "-m", "room again"])
    assert done.code == 0, done
    assert small.goes_on()
    empty(small.disk)
    with Repository.open(small.env.repo) as repository:
        assert repository.fsck().clean
        assert kept - {small.first} <= {one.id.hex() for one in repository.snapshots()}
