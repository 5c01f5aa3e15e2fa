"""gc, fsck, du and undo of a remote: nothing that a name leads to goes, and what was altered is named and healed."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from storekit import contents, damage, save

from ijfs_engine import CorruptError, IjfsError, Repository, StorageError
from ijfs_engine.remote import cache

RNG = random.Random(12)
DAY = 86_400


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def pushed(repository: Repository, bucket: Path) -> Repository:
    """Two snapshots of one branch, each pushed by itself."""
    repository.remotes.add("origin", f"file://{bucket}")
    first = save(repository, {"a": noise(30_000)}, branch="main")
    push(repository)
    save(repository, {"a": noise(30_000)}, branch="main", parents=[first.id])
    push(repository)
    return repository


def push(repository: Repository) -> None:
    repository.remotes.push("origin", {f"branch/{n}": i for n, i in repository.refs.branches().items()})


def clone(pushed: Repository, tmp_path: Path) -> Repository:
    other = Repository.init(tmp_path / "other")
    other.remotes.add("origin", f"file://{tmp_path}/bucket")
    other.remotes.fetch("origin")
    return other


def packs(bucket: Path) -> list[Path]:
    return sorted(path for path in (bucket / "packs").iterdir() if not path.suffix)


def age(bucket: Path, days: float) -> None:
    """Let everything in the store be so much older, by its own clock."""
    for path in bucket.rglob("*"):
        if path.is_file():
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(days * DAY * 1e9)))


def test_what_no_name_leads_to_goes_in_two_steps(pushed: Repository, bucket: Path, tmp_path: Path) -> None:
    side = save(pushed, {"b": noise(20_000)}, branch="side")
    push(pushed)
    before = len(packs(bucket))
    pushed.remotes.undo("origin")
    assert "branch/side" not in pushed.remotes.known("origin").refs
    assert pushed.remotes.gc("origin").packs_marked == 0  # all of it is young
    age(bucket, 8)
    dry = pushed.remotes.gc("origin", dry_run=True)
    marked = pushed.remotes.gc("origin")
    assert dry[:3] == marked[:3] == (1, 2, marked.bytes_marked)
    assert len(packs(bucket)) == before
    assert pushed.remotes.gc("origin").packs_removed == 0
    age(bucket, 8)
    assert pushed.remotes.gc("origin").packs_removed == 2
    assert len(packs(bucket)) == before - 2
    assert not list((bucket / "sweeps").iterdir())
    with clone(pushed, tmp_path) as other:
        assert contents(other, other.resolve("origin/main"))["a"]
        assert not other.remotes.known("origin").listing(side.id)


def test_what_was_marked_and_is_pushed_again_stays(pushed: Repository, bucket: Path, tmp_path: Path) -> None:
    files = {"b": noise(20_000)}
    side = save(pushed, files, branch="side")
    push(pushed)
    pushed.remotes.undo("origin")
    age(bucket, 8)
    assert pushed.remotes.gc("origin").packs_marked == 2
    push(pushed)  # counts on nothing that is marked
    age(bucket, 8)
    pushed.remotes.gc("origin")
    with clone(pushed, tmp_path) as other:
        assert contents(other, side.id) == files


def test_a_push_that_never_ended_is_found_by_gc(
    pushed: Repository, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ijfs_engine.remote.oplog import OpLog

    before = packs(bucket)
    save(pushed, {"b": noise(20_000)}, branch="side")
    with monkeypatch.context() as patch:
        patch.setattr(OpLog, "_add", lambda self, operation: (_ for _ in ()).throw(StorageError("gone")))
        with pytest.raises(StorageError, match="gone"):
            push(pushed)
    half = [path for path in packs(bucket) if path not in before]
    assert len(half) == 2
    push(pushed)  # goes on with what has arrived
    assert packs(bucket) == sorted([*before, *half])


def test_an_altered_pack_is_named_and_healed_by_who_has_it(pushed: Repository, bucket: Path, tmp_path: Path) -> None:
    assert not pushed.remotes.fsck("origin").harm
    newest = pushed.resolve("main")
    for path in packs(bucket):
        damage(path, 200)
    report = pushed.remotes.fsck("origin")
    assert {harm.where for harm in report.harm} == {f"packs/{path.name}" for path in packs(bucket)}
    assert newest in {ident for harm in report.harm for ident in harm.snapshots}
    with clone(pushed, tmp_path) as other:
        assert other.remotes.fsck("origin", repair=True).healed == []
        with pytest.raises(CorruptError):
            contents(other, newest)
        repaired = pushed.remotes.fsck("origin", repair=True)
        assert (len(repaired.healed), repaired.left) == (2, [])
        assert not pushed.remotes.fsck("origin").harm
        other.remotes.fetch("origin")
        assert contents(other, newest) == contents(pushed, newest)


def test_a_repair_names_the_harm_that_it_leaves(pushed: Repository, bucket: Path) -> None:
    shared = noise(300_000)
    mine = save(pushed, {"a": shared, "b": b"b"}, branch="main")
    push(pushed)
    theirs = save(pushed, {"a": shared}, branch="other")
    push(pushed)
    pushed.refs.delete_branch("other")
    pushed.gc()
    damage(max(packs(bucket), key=lambda path: path.stat().st_size), 5000)
    repaired = pushed.remotes.fsck("origin", repair=True)
    assert mine.id in repaired.healed
    assert [harm.snapshots for harm in repaired.left] == [(theirs.id,)]
    assert repaired.left == pushed.remotes.fsck("origin").left


def test_a_lost_pack_is_named(pushed: Repository, bucket: Path) -> None:
    packs(bucket)[0].unlink()
    (harm,) = pushed.remotes.fsck("origin", data=False).harm
    assert "missing" in harm.message


def test_a_damaged_cache_costs_a_request_and_no_byte(pushed: Repository, tmp_path: Path) -> None:
    with clone(pushed, tmp_path) as other:
        newest = other.resolve("origin/main")
        assert contents(other, newest) == contents(pushed, newest)
    for path in (tmp_path / "other/remotes/cache").iterdir():
        if path.suffix != ".map":
            path.write_bytes(bytes(path.stat().st_size))
    with Repository.open(tmp_path / "other") as other:
        assert contents(other, newest) == contents(pushed, newest)


def test_the_cache_gives_back_what_was_not_used_for_longest(
    pushed: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IJFS_REMOTE_CACHE", f"{4 * cache.BLOCK >> 10}K")
    files = {f"f{n}": noise(40_000) for n in range(30)}
    saved = save(pushed, files, branch="large")
    push(pushed)
    place = tmp_path / "other/remotes/cache"
    with clone(pushed, tmp_path) as other:
        assert contents(other, saved.id) == files
        assert held(place) > 4 * cache.BLOCK
        for path in place.glob("*.map"):  # as if it had been read long ago, the first blocks last
            used = array("I", path.read_bytes())
            path.write_bytes(array("I", [len(used) - at if mark else 0 for at, mark in enumerate(used)]).tobytes())
        elsewhere = other.remotes.elsewhere()
        assert elsewhere is not None
        elsewhere._cache.evict()
        assert 0 < held(place) <= 4 * cache.BLOCK
        assert contents(other, saved.id) == files


def held(place: Path) -> int:
    """Bytes that packs take in a cache."""
    return sum(path.stat().st_blocks * 512 for path in place.iterdir() if not path.suffix)


def test_du_adds_up(pushed: Repository, bucket: Path) -> None:
    usage = pushed.remotes.du("origin")
    assert usage.needed == sum(path.stat().st_size for path in packs(bucket))
    assert usage.unneeded == 0
    assert usage.total == sum(path.stat().st_size for path in bucket.rglob("*") if path.is_file())
    assert all(0 < one.alone <= one.needed for one in usage.snapshots)


def test_an_undo_can_be_undone(pushed: Repository) -> None:
    newest, older = pushed.resolve("origin/main"), pushed.resolve("origin/main~1")
    assert pushed.remotes.undo("origin").refs == {"branch/main": older}
    assert pushed.resolve("origin/main") == older
    pushed.remotes.undo("origin")
    assert pushed.resolve("origin/main") == newest
    assert [one.why for _, one in pushed.remotes.operations("origin", 10)][-1] == "push"


def test_two_machines_may_gc_at_once(pushed: Repository, bucket: Path, tmp_path: Path) -> None:
    save(pushed, {"b": noise(20_000)}, branch="side")
    push(pushed)
    pushed.remotes.undo("origin")
    age(bucket, 8)
    with clone(pushed, tmp_path) as other:
        rivals = (pushed, other)
        for each in rivals:
            each.remotes.gc("origin")
        age(bucket, 8)
        failed = run_at_once([lambda each=each: each.remotes.gc("origin") for each in rivals])  # type: ignore[misc]
        assert not failed
        assert not other.remotes.fsck("origin").harm
        assert contents(other, other.resolve("origin/main")) == contents(pushed, pushed.resolve("main"))
        assert other.remotes.du("origin").unneeded == 0


def run_at_once(calls: list[Callable[[], object]]) -> list[BaseException]:
    """Each in a thread of its own; what they raised."""
    failed: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_a_day_off_takes_nothing_too_early(
    pushed: Repository, bucket: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    save(pushed, {"b": noise(20_000)}, branch="side")
    push(pushed)
    pushed.remotes.undo("origin")
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(days * DAY * 1e9))
    before = packs(bucket)
    assert pushed.remotes.gc("origin", grace_s=DAY / 2).packs_marked == 0
    age(bucket, 0.6)
    assert pushed.remotes.gc("origin", grace_s=DAY / 2).packs_marked == 2
    assert pushed.remotes.gc("origin", grace_s=DAY / 2).packs_removed == 0
    assert packs(bucket) == before


def test_machines_that_push_at_once_all_arrive(repository: Repository, bucket: Path, tmp_path: Path) -> None:
    hosts = [Repository.init(tmp_path / f"host{n}") for n in range(3)]
    saved = [save(host, {"a": noise(9000)}, branch="main").id for host in hosts]
    for host in hosts:
        host.remotes.add("origin", f"file://{bucket}")
    assert not run_at_once([lambda host=host: push(host) for host in hosts])  # type: ignore[misc]
    hosts[0].remotes.fetch("origin")
    tree = hosts[0].remotes.known("origin")
    assert set(tree.refs.values()) == set(saved)
    assert {name.partition("@")[0] for name in tree.refs} == {"branch/main"}
    for host in hosts:
        host.close()


def test_a_store_that_went_away_is_said_and_harms_nothing(pushed: Repository, bucket: Path, tmp_path: Path) -> None:
    main = pushed.resolve("main")
    with clone(pushed, tmp_path) as other:
        shutil.rmtree(bucket)
        with pytest.raises(IjfsError, match="no tree"):
            other.remotes.fetch("origin")
        with pytest.raises((CorruptError, StorageError)):
            contents(other, main)
        assert other.fsck().clean
    assert contents(pushed, main)
    assert pushed.fsck().clean


def test_another_tree_in_the_same_place_is_refused(pushed: Repository, bucket: Path, tmp_path: Path) -> None:
    shutil.rmtree(bucket)
    with Repository.init(tmp_path / "stranger") as stranger:
        save(stranger, {"x": noise(100)}, branch="main")
        stranger.remotes.add("origin", f"file://{bucket}")
        push(stranger)
    for verb in (push, lambda one: one.remotes.fetch("origin"), lambda one: one.remotes.gc("origin")):
        with pytest.raises(IjfsError, match="another tree"):
            verb(pushed)
