"""prune: each branch is thinned by itself; heads, tags and pins stay; a dry run says the same and does nothing."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from storekit import contents, save

from ijfs_engine import IjfsError, PrunePolicy, Repository, Snapshot
from ijfs_engine.maintenance.prune import select

NOON = datetime(2026, 3, 31, 12, 0)


def at(moment: datetime) -> Snapshot:
    return Snapshot(moment.isoformat().encode(), b"", (), int(moment.timestamp() * 1e9), "", {})


def kept(line: list[Snapshot], **policy: int) -> list[int]:
    chosen = {ident for ident, _ in select(line, PrunePolicy(**policy))}
    return [number for number, one in enumerate(line) if one.id in chosen]


def test_the_newest_of_each_period_is_kept() -> None:
    every_six_hours = [at(NOON - timedelta(hours=6 * number)) for number in range(400)]
    assert kept(every_six_hours, last=3) == [0, 1, 2]
    # Noon, then the 18:00 snapshot of each day before.
    assert kept(every_six_hours, daily=4) == [0, 3, 7, 11]
    assert kept(every_six_hours, monthly=3) == [0, 123, 235]
    assert kept(every_six_hours, weekly=2) == [0, 7]
    assert kept(every_six_hours, yearly=-1) == [0, 359]
    assert kept(every_six_hours, hourly=-1) == list(range(400))
    assert kept(every_six_hours, last=1, daily=2) == [0, 3]


def test_a_policy_thins_every_branch_by_itself(repository: Repository) -> None:
    trunk = [save(repository, {"f": b"0"}, branch="main")]
    for number in range(1, 6):
        trunk.append(save(repository, {"f": b"%d" % number}, parents=[trunk[-1].id], branch="main"))
    side = save(repository, {"s": b"s"}, parents=[trunk[2].id], branch="side")
    repository.refs.set_tag("v1", trunk[1].id)
    policy = PrunePolicy(last=2)
    plan = repository.prune(policy, dry_run=True)
    assert len(repository.snapshots()) == 7
    with repository.pin(trunk[0].id, "kernel"):
        report = repository.prune(policy)
    assert (plan.dry_run, report.dry_run) == (True, False)
    assert set(plan.removed) == {trunk[3].id, trunk[0].id}
    assert report.removed == [trunk[3].id]
    why = dict(report.kept)
    assert why[side.id] == ("head of side", "last")
    assert why[trunk[2].id] == ("last",)
    assert why[trunk[1].id] == ("tag v1",)
    assert why[trunk[0].id] == ("in use by kernel",)
    repository.gc()
    assert contents(repository, trunk[5].id) == {"f": b"5"}
    assert repository.resolve("main~2") == trunk[2].id
    assert repository.fsck().clean
    assert repository.prune(policy).removed == [trunk[0].id]
    assert repository.prune(policy).removed == []


def test_a_policy_that_keeps_nothing_is_refused(repository: Repository) -> None:
    with pytest.raises(IjfsError, match="keep nothing"):
        repository.prune(PrunePolicy())
