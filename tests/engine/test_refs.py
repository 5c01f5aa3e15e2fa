"""Names: branches, tags, their log, what a person may type for a snapshot, rm and pins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storekit import contents, damage, frame_of, save

from ijfs_engine import (
    AmbiguousNameError,
    ConflictError,
    CorruptError,
    IjfsError,
    LockedError,
    Repository,
    Snapshot,
    UnknownNameError,
)
from ijfs_engine.storage.locks import LockFile


def chain(repository: Repository, length: int, branch: str = "main") -> list[Snapshot]:
    made: list[Snapshot] = []
    for number in range(length):
        parents = [made[-1].id] if made else []
        made.append(save(repository, {"f": b"%d" % number}, parents=parents, branch=branch, message=f"m{number}"))
    return made


def test_every_spelling_leads_to_the_snapshot(repository: Repository) -> None:
    first, second, third = chain(repository, 3)
    repository.refs.set_tag("v1", first.id)
    assert repository.resolve("main") == repository.resolve("latest") == third.id
    assert repository.resolve("main~") == repository.resolve("main~1") == second.id
    assert repository.resolve("main~2") == repository.resolve("main~~") == repository.resolve("v1") == first.id
    assert repository.resolve("branch/main") == third.id
    assert repository.resolve("tag/v1") == first.id
    for digits in (4, 5, 12, 64):
        assert repository.resolve(second.id.hex()[:digits]) == second.id
    assert repository.resolve(second.id.hex()[:9].upper() + "~1") == first.id


@pytest.mark.parametrize("spec", ["nobody", "", "~", "abc", "main~3", "main~x", "0" * 64, "f" * 65, "a b", "main/../x"])
def test_what_names_nothing_is_unknown(repository: Repository, spec: str) -> None:
    chain(repository, 3)
    with pytest.raises(UnknownNameError):
        repository.resolve(spec)


def at(monkeypatch: pytest.MonkeyPatch, offset_s: float) -> None:
    """Set this process's clock."""
    monkeypatch.setattr(time, "time_ns", lambda: _TIME_NS() + int(offset_s * 1e9))


_TIME_NS = time.time_ns
DAY = 86_400


@pytest.mark.parametrize("later", [0, 30 * DAY])
def test_a_clock_that_was_ahead_does_not_decide_what_is_newest(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """Looked at as long as its time has not come, and when it has."""
    at(monkeypatch, -2 * DAY)
    first = save(repository, {"f": b"1"}, branch="main")
    at(monkeypatch, 20 * DAY)
    ahead = save(repository, {"f": b"2"}, parents=[first.id], branch="main")
    at(monkeypatch, -DAY)
    other = save(repository, {"f": b"3"}, branch="other")
    child = save(repository, {"f": b"4"}, parents=[ahead.id], branch="main")
    at(monkeypatch, later)
    # When its time has come, nothing tells it from a right one any more but the child.
    between = [ahead, other] if later else [other, ahead]
    assert [one.id for one in repository.snapshots()] == [one.id for one in (child, *between, first)]
    assert repository.resolve("latest") == child.id
    assert [one.id for one in repository.snapshots(1)] == [child.id]


def test_what_was_saved_while_the_clock_was_ahead_is_not_the_latest_of_all_branches(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 20 * DAY)
    ahead = save(repository, {"f": b"1"}, branch="wrong")
    at(monkeypatch, 0)
    right = save(repository, {"f": b"2"}, branch="right")
    assert repository.resolve("latest") == right.id
    assert [one.id for one in repository.snapshots()] == [right.id, ahead.id]
    at(monkeypatch, 5)
    alone = save(repository, {"f": b"3"}, branch="wrong")
    assert repository.resolve("latest") == alone.id


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(clocks=st.lists(st.integers(-3, 3), min_size=2, max_size=7), data=st.data())
def test_no_child_stands_below_its_parent_whatever_the_clock_did(
    clocks: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        Repository.init(tmp_path_factory.mktemp("clocks") / "repo") as repository,
    ):
        made: list[bytes] = []
        for number, clock in enumerate(clocks):
            at(patch, clock * DAY)
            parents = data.draw(st.lists(st.sampled_from(made), max_size=2, unique=True)) if made else []
            branch = f"b{data.draw(st.integers(0, 2))}"
            made.append(save(repository, {"f": b"%d" % number}, parents=parents, branch=branch).id)
        at(patch, 0)
        if len(made) > 2 and data.draw(st.booleans()):
            repository.remove(made.pop(1))
        ordered = [one.id for one in repository.snapshots()]
        assert sorted(ordered) == sorted(made)
        place = {ident: number for number, ident in enumerate(ordered)}
        for ident in ordered:
            assert all(place[ident] < place[parent] for parent in repository.parents(ident))
        assert repository.resolve("latest") == ordered[0]


def test_latest_of_nothing_says_what_to_do(repository: Repository) -> None:
    with pytest.raises(UnknownNameError) as caught:
        repository.resolve("latest")
    assert "ijfs save" in (caught.value.hint or "")


def test_an_ambiguous_prefix_lists_the_candidates(repository: Repository) -> None:
    from ijfs_engine.storage.index import SNAPSHOTS, U64

    twins = [bytes.fromhex("abcd12") + bytes([n]) * 29 for n in (1, 2)]
    repository.index.write(lambda update: [update.put(SNAPSHOTS, twin, U64.pack(1)) for twin in twins])
    with pytest.raises(AmbiguousNameError, match="abcd12010101, abcd12020202"):
        repository.resolve("abcd1")
    assert repository.resolve("abcd1201") == twins[0]


def test_a_branch_moves_only_from_where_it_is_expected(repository: Repository) -> None:
    first, second = chain(repository, 2)
    refs = repository.refs
    with pytest.raises(ConflictError, match="exists already"):
        refs.set_branch("main", first.id, expect=None)
    with pytest.raises(ConflictError):
        refs.set_branch("main", first.id, expect=first.id)
    refs.set_branch("main", first.id, expect=second.id)
    with pytest.raises(ConflictError, match="is gone"):
        refs.set_branch("new", first.id, expect=second.id)
    with pytest.raises(ConflictError):
        refs.delete_branch("main", expect=second.id)
    assert refs.branches() == {"main": first.id}


def test_a_tag_does_not_move_unless_told_from_where(repository: Repository) -> None:
    first, second = chain(repository, 2)
    repository.refs.set_tag("v1", first.id)
    with pytest.raises(ConflictError):
        repository.refs.set_tag("v1", second.id)
    repository.refs.set_tag("v1", second.id, expect=first.id)
    assert repository.refs.tags() == {"v1": second.id}


def test_a_ref_points_at_what_is_listed(repository: Repository) -> None:
    with pytest.raises(UnknownNameError):
        repository.refs.set_branch("main", bytes(32))
    with pytest.raises(UnknownNameError):
        repository.refs.delete_branch("main")


@pytest.mark.parametrize(
    "name", ["", "a/b", "a b", "latest", "~x", ".hidden", "-x", "a~1", "x" * 201, "0" * 64, "a\n", ".."]
)
def test_names_that_would_confuse_are_refused(repository: Repository, name: str) -> None:
    (only,) = chain(repository, 1)
    with pytest.raises(IjfsError, match="cannot be the name"):
        repository.refs.set_branch(name, only.id)


def test_the_log_tells_who_moved_what_when_and_why(repository: Repository) -> None:
    first, second = chain(repository, 2)
    repository.refs.set_tag("v1", first.id, why="release")
    repository.refs.delete_branch("main")
    repository.refs.set_branch("other", first.id)
    repository.refs.set_branch("other", second.id, why="on purpose")
    repository.refs.set_tag("v2", second.id)
    repository.refs.delete_tag("v2", why="too early")
    log = repository.refs.log()
    assert [(one.name, one.old, one.new, one.why) for one in log] == [
        ("tag/v2", second.id, None, "too early"),
        ("tag/v2", None, second.id, "tag"),
        ("branch/other", first.id, second.id, "on purpose"),
        ("branch/other", None, first.id, "branch"),
        ("branch/main", second.id, None, "delete"),
        ("tag/v1", None, first.id, "release"),
        ("branch/main", first.id, second.id, "m1"),
        ("branch/main", None, first.id, "m0"),
    ]
    assert all("@" in one.who for one in log)
    assert [one.time_ns for one in log] == sorted((one.time_ns for one in log), reverse=True)
    assert len(repository.refs.log("main")) == 3
    assert len(repository.refs.log("tag/v1")) == 1


# --- rm


def test_what_is_removed_from_the_middle_leaves_its_children_whole(repository: Repository) -> None:
    first, second, third = chain(repository, 3)
    repository.remove(second.id)
    repository.gc()
    assert [one.id for one in repository.snapshots()] == [third.id, first.id]
    assert contents(repository, third.id) == {"f": b"2"}
    assert repository.resolve("main~1") == first.id
    assert repository.parents(third.id) == [first.id]
    assert repository.fsck().clean


def test_ways_past_removed_snapshots_that_meet_again_lead_to_one_parent(repository: Repository) -> None:
    (first,) = chain(repository, 1)
    sides = [save(repository, {"f": b"side %d" % side}, parents=[first.id]) for side in range(2)]
    merged = save(repository, {"f": b"merged"}, parents=[one.id for one in sides], branch="main")
    repository.remove_many([one.id for one in sides])
    assert repository.parents(merged.id) == [first.id]


def test_a_branch_at_what_is_removed_moves_to_its_parent(repository: Repository) -> None:
    first, second, third = chain(repository, 3)
    repository.remove(second.id)
    repository.remove(third.id)
    assert repository.refs.branches() == {"main": first.id}
    repository.remove(first.id)
    assert repository.refs.branches() == {}
    with pytest.raises(UnknownNameError):
        repository.remove(first.id)


def lose_record(repository: Repository, ident: bytes) -> None:
    """Damage its frame."""
    path, offset = frame_of(repository, ident)
    damage(path, offset + 9)

    with pytest.raises(CorruptError):
        repository.snapshot(ident)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_branch_goes_back_past_a_snapshot_whose_record_is_lost(repository: Repository, lost: int) -> None:
    made = chain(repository, 3)
    lose_record(repository, made[lost].id)
    repository.refs.set_branch("main", made[lost].id)
    repository.refs.set_branch("other", made[lost].id)
    assert repository.heirs([made[lost].id]) == dict.fromkeys(("main", "other"), made[lost - 1].id)
    repository.remove(made[lost].id)
    assert repository.refs.branches() == dict.fromkeys(("main", "other"), made[lost - 1].id)


def test_what_follows_a_snapshot_whose_record_is_lost_keeps_what_was_before_it(repository: Repository) -> None:
    first, second, third = chain(repository, 3)
    lose_record(repository, second.id)
    repository.remove(second.id)
    assert repository.parents(third.id) == [first.id]
    repository.gc()
    assert contents(repository, first.id) == {"f": b"0"}


def test_a_branch_of_one_snapshot_whose_record_is_lost_goes(repository: Repository) -> None:
    (only,) = chain(repository, 1)
    lose_record(repository, only.id)
    assert repository.heirs([only.id]) == {"main": None}
    repository.remove(only.id)
    assert repository.refs.branches() == {}


def test_a_tag_holds_its_snapshot(repository: Repository) -> None:
    (only,) = chain(repository, 1)
    repository.refs.set_tag("v1", only.id)
    with pytest.raises(IjfsError, match="tagged v1"):
        repository.remove(only.id)
    assert repository.resolve("v1") == only.id


# --- pins


def test_a_pin_holds_its_snapshot_against_rm_and_gc(repository: Repository) -> None:
    first, second = chain(repository, 2)
    repository.refs.set_branch("main", first.id)
    with repository.pin(second.id, "kernel-1"):
        assert [(pin.id, pin.owner) for pin in repository.pins()] == [(second.id, "kernel-1")]
        with pytest.raises(LockedError, match="kernel-1"):
            repository.remove(second.id)
        repository.gc()
        assert contents(repository, second.id) == {"f": b"1"}
    assert repository.pins() == []
    repository.gc()
    with pytest.raises(UnknownNameError):
        repository.pin(second.id, "late")
    assert list(repository.directory.pins.iterdir()) == []


def test_a_pin_that_is_just_being_made_holds_nothing_yet_and_is_no_error(repository: Repository) -> None:
    first = chain(repository, 2)[0]
    repository.refs.set_branch("main", first.id)
    made = LockFile.create(repository.directory.pins)
    assert repository.pins() == []
    assert repository.gc().snapshots_removed == 1
    made.write(b"no pin")
    with pytest.raises(CorruptError, match="cannot be read"):
        repository.pins()
    made.close()


HOLDER = """
import sys, time
from ijfs_engine import Repository
repository = Repository.open(sys.argv[1])
pin = repository.pin(bytes.fromhex(sys.argv[2]), "holder")
print("held", flush=True)
time.sleep(60)
"""


def test_the_pin_of_a_dead_owner_holds_nothing(repository: Repository) -> None:
    first, second = chain(repository, 2)
    repository.refs.set_branch("main", first.id)
    command = [sys.executable, "-c", HOLDER, str(repository.path), second.id.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert [pin.pid for pin in repository.pins()] == [holder.pid]
            assert repository.gc().snapshots_removed == 0
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    assert repository.gc().snapshots_removed == 1
    assert list(repository.directory.pins.iterdir()) == []


def test_parents_of_any_number_are_kept(repository: Repository, tmp_path: Path) -> None:
    first = save(repository, {"a": b"1"})
    second = save(repository, {"b": b"2"})
    merged = save(repository, {"a": b"1", "b": b"2"}, parents=[first.id, second.id], branch="main")
    repository.gc()
    assert {one.id for one in repository.snapshots()} == {first.id, second.id, merged.id}
    assert repository.resolve("main~1") == first.id
