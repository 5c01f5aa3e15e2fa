"""prune: each branch is thinned by itself; heads, tags and pins stay; a dry run says the same and does nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

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


def test_a_reason_that_holds_on_several_branches_is_said_once(repository: Repository) -> None:
    only = save(repository, {"f": b"0"}, branch="main")
    for name in ("one", "two"):
        repository.refs.set_branch(name, only.id)
    [(ident, reasons)] = repository.prune(PrunePolicy(last=2), dry_run=True).kept
    assert ident == only.id
    assert len(reasons) == len(set(reasons))
    assert "last" in reasons


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


# --- branches that nobody named


def began_again(repository: Repository, times: int) -> tuple[Snapshot, list[Snapshot]]:
    """A program that starts from one snapshot again and again, two saves each time; the heads in order."""
    first = save(repository, {"f": b"first"}, branch="main")
    heads = []
    for number in range(times):
        if number:
            repository.refs.set_aside("work", repository.resolve("work"))
        middle = save(repository, {"f": b"middle %d" % number}, parents=[first.id], branch="work")
        heads.append(save(repository, {"f": b"end %d" % number}, parents=[middle.id], branch="work"))
    return first, heads


OLD = PrunePolicy(unnamed_older_than_s=0)


def test_branches_that_nobody_named_go_by_their_age(repository: Repository) -> None:
    first, heads = began_again(repository, 5)
    assert repository.prune(PrunePolicy(unnamed_older_than_s=3600)).branches == []
    plan = repository.prune(OLD, dry_run=True)
    assert len(repository.refs.branches()) == 6
    assert [name for name, _ in plan.branches] == ["work.1", "work.2", "work.3", "work.4"]
    report = repository.prune(OLD)
    assert (report.branches, report.removed) == (plan.branches, plan.removed)
    assert set(repository.refs.branches()) == {"main", "work"}
    assert {one.id for one in repository.snapshots()} == {first.id, heads[-1].id, *repository.parents(heads[-1].id)}
    repository.gc()
    assert contents(repository, heads[-1].id) == {"f": b"end 4"}
    assert repository.fsck().clean


def test_what_somebody_uses_of_an_unnamed_branch_stays(repository: Repository) -> None:
    """A name that a person gave, a save onto it, a tag, a live program, a branch that goes on from it."""
    first, heads = began_again(repository, 7)
    goes_on = save(repository, {"f": b"on"}, parents=[heads[0].id], branch="work.1")
    repository.refs.set_tag("good", heads[1].id)
    other = save(repository, {"f": b"other"}, parents=[heads[2].id], branch="other")
    repository.refs.set_branch("mine", heads[3].id)
    repository.refs.set_branch("by-hand.1", repository.parents(heads[4].id)[0])
    with repository.pin(heads[5].id, "kernel"):
        report = repository.prune(OLD)
    assert {name for name, _ in report.branches} == {"work.3", "work.4", "work.5"}
    assert report.removed == [heads[4].id]
    assert set(repository.refs.branches()) >= {"work.1", "work.2", "work.6", "by-hand.1"}
    for one in (goes_on, other, heads[1], heads[2], heads[3], heads[5], first):
        assert contents(repository, one.id)
    assert repository.fsck().clean


def test_numbers_and_the_rule_for_unnamed_branches_go_together(repository: Repository) -> None:
    _, heads = began_again(repository, 3)
    report = repository.prune(PrunePolicy(last=1, unnamed_older_than_s=0))
    assert [name for name, _ in report.branches] == ["work.1", "work.2"]
    assert {one.id for one in repository.snapshots()} == {heads[-1].id, repository.resolve("main")}


def test_a_branch_that_moves_meanwhile_stays(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    _, heads = began_again(repository, 2)
    delete = repository.refs.delete_branch

    def move_first(name: str, **how: Any) -> None:
        save(repository, {"f": b"more"}, parents=[heads[0].id], branch=name)
        delete(name, **how)

    monkeypatch.setattr(repository.refs, "delete_branch", move_first)
    report = repository.prune(OLD)
    assert (report.branches, report.removed) == ([], [])
    assert contents(repository, repository.resolve("work.1")) == {"f": b"more"}
