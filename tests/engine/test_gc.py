"""gc and du: what nothing reaches goes, its bytes come back, and nothing that a running save found is taken."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from storekit import chunks, contents, damage, frame_of, pack_paths, put, put_against, save
from waiting import patient

from ijfs_engine import CorruptError, LockedError, Repository, Snapshot, SnapshotWriter, StorageError
from ijfs_engine.format.frames import HEADER_SIZE, FrameKind, chunk_id
from ijfs_engine.format.records import Entry, Tree, encode_tree
from ijfs_engine.maintenance import disk_usage, gc, repack
from ijfs_engine.maintenance.reachability import ReachableSet
from ijfs_engine.storage import disk
from ijfs_engine.storage.index import CHUNKS, CONDEMNED, REMOVED
from ijfs_engine.storage.locks import exclusive
from ijfs_engine.storage.pack import DATA_PACK, encode_pack_header
from ijfs_engine.storage.session import Session

RNG = random.Random(7)


@pytest.fixture(autouse=True, params=[False, True], ids=["at once", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc marks and sweeps all at once or, as on a disk that is nearly full, one part of the ids after the other."""
    if request.param:
        monkeypatch.setattr(gc, "_ROOM_OF_A_MARK", 1 << 60)
        monkeypatch.setattr(gc, "_MOST_PARTS", 3)


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


def condemned(repository: Repository) -> int:
    with repository.index.read() as view:
        return view.count(CONDEMNED)


# --- du


def test_du_adds_up(repository: Repository) -> None:
    shared, one, two = noise(40_000), noise(20_000), noise(8_000)
    first = save(repository, {"s": shared, "x": one}, branch="a")
    second = save(repository, {"s": shared, "x": two}, branch="b")
    usage = repository.du([first.id, second.id])
    a, b = usage.snapshots
    assert (a.logical, b.logical) == (60_000, 48_000)
    assert a.shared == b.shared
    assert 40_000 < a.shared < 42_500
    assert 20_000 < a.unique < 22_000
    assert 8_000 < b.unique < 9_500
    assert usage.total.stored == a.unique + b.unique + a.shared
    live = sum(path.stat().st_size for path in pack_paths(repository)) - 64 * len(pack_paths(repository))
    assert usage.total.stored == live
    assert usage.sharing == pytest.approx((a.shared + b.shared) / (a.stored + b.stored))
    assert repository.du([first.id]).snapshots[0].unique == a.stored


def test_du_counts_the_bases_of_differences(repository: Repository) -> None:
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    with repository.session() as session:
        put_against(session, near, base, put(session, base))
        session.publish()
    snapshot = save(repository, {"near": near}, branch="main")
    assert repository.du([snapshot.id]).total.stored > 4096


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["sizes from a scan", "sizes looked up"])
def test_du_counts_every_frame_once_however_it_is_reached(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Chains of differences, chunks in several leaves and trees: unique is what removing the snapshot frees."""
    monkeypatch.setattr(disk_usage, "_MOST", share)
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    far = near[:100] + bytes([near[100] ^ 1]) + near[101:]
    with repository.session() as session:
        put_against(session, near, base, put(session, base))
        put_against(session, far, near, chunk_id(near), 1)
        session.publish()
    common = noise(70_000)
    one = save(repository, {"far": far, "c": common}, branch="one")
    two = save(repository, {"near": near, "c": common, "twice": common[:8192]}, branch="two")
    three = save(repository, {"far": far, "own": noise(9000)}, branch="three")
    usages = repository.du([one.id, two.id, three.id])
    live = sum(path.stat().st_size - 64 for path in pack_paths(repository))
    assert usages.total.stored == live
    repository.remove(three.id)
    repository.gc()
    rest = sum(path.stat().st_size - 64 for path in pack_paths(repository))
    assert live - rest == usages.snapshots[2].unique
    assert repository.du([one.id, one.id]).snapshots[0].unique == 0


# --- what goes and what stays


def test_gc_gives_the_bytes_back(repository: Repository) -> None:
    keep = save(repository, {"a": noise(100_000)}, branch="keep")
    save(repository, {"a": noise(2_000_000)}, branch="gone")
    repository.refs.delete_branch("gone")
    estimate = repository.gc(dry_run=True)
    assert len(repository.snapshots()) == 2
    report = repository.gc()
    assert report.snapshots_removed == estimate.snapshots_removed == 1
    assert report.chunks_removed == estimate.chunks_removed
    assert report.freed > 1_900_000
    assert abs(estimate.freed - 2_000_000) < 100_000
    assert sum(path.stat().st_size for path in pack_paths(repository)) < 110_000
    assert contents(repository, keep.id)["a"]
    assert repository.fsck().clean
    assert repository.gc().freed == 0


@pytest.mark.parametrize("size", [50, 300_000])
def test_a_dry_run_and_the_run_agree_on_packs_and_bytes(repository: Repository, size: int) -> None:
    both = save(repository, {"a": noise(size), "b": noise(4 * size)}, branch="both")
    kept = save(repository, {"a": contents(repository, both.id)["a"]}, branch="kept")
    save(repository, {"c": noise(size)}, branch="gone")
    repository.refs.delete_branch("both")
    repository.refs.delete_branch("gone")
    dry = repository.gc(dry_run=True)
    report = repository.gc()
    assert (dry.packs_removed, dry.packs_rewritten) == (report.packs_removed, report.packs_rewritten)
    assert report.packs_removed >= 1
    # Rows of the index and lines of the journal have blocks of their own.
    assert abs(dry.freed - report.freed) <= 4 * 4096
    assert contents(repository, kept.id)


def test_gc_rewrites_a_pack_that_is_mostly_dead(repository: Repository) -> None:
    small, large = noise(30_000), noise(400_000)
    both = save(repository, {"large": large, "small": small}, branch="both")
    rest = save(repository, {"small": small}, branch="rest")
    repository.remove(both.id)
    report = repository.gc()
    assert report.packs_rewritten == 1
    assert sum(path.stat().st_size for path in pack_paths(repository)) < 40_000
    assert contents(repository, rest.id) == {"small": small}
    assert repository.fsck().clean


def test_many_small_packs_become_few(repository: Repository) -> None:
    made = [save(repository, {"f": noise(3000)}, branch=f"b{number}") for number in range(20)]
    assert len(pack_paths(repository)) == 20
    repository.gc()
    assert len(pack_paths(repository)) == 1
    assert all(contents(repository, one.id) for one in made)
    assert repository.fsck().clean


def test_a_base_lives_as_long_as_what_is_stored_against_it(repository: Repository) -> None:
    base = noise(4096)
    near = bytes([base[0] ^ 1]) + base[1:]
    old = save(repository, {"f": base}, branch="old")
    with repository.session() as session:
        put_against(session, near, base, chunk_id(base))
        new = save(repository, {"f": near}, branch="new", session=session)
    repository.remove(old.id)
    repository.gc()
    assert contents(repository, new.id) == {"f": near}
    repository.remove(new.id)
    repository.gc()
    assert repository.stats().chunks == 0


def test_gc_refuses_to_guess_when_metadata_is_damaged(repository: Repository) -> None:
    snapshot = save(repository, {"f": noise(30_000)}, branch="main")
    save(repository, {"g": noise(30_000)}, branch="other")
    path, offset = frame_of(repository, snapshot.root)
    damage(path, offset + HEADER_SIZE + 1)
    with pytest.raises(CorruptError, match="cannot tell what is needed"):
        repository.gc()
    repository.remove(snapshot.id)
    repository.gc()
    assert repository.fsck().clean


def test_a_pack_with_damage_in_it_is_not_rewritten(repository: Repository) -> None:
    small, other, large = noise(4000), noise(4000), noise(400_000)
    both = save(repository, {"large": large, "other": other, "small": small}, branch="both")
    rest = save(repository, {"other": other, "small": small}, branch="rest")
    path, offset = frame_of(repository, chunk_id(small))
    damage(path, offset + HEADER_SIZE + 1)
    repository.remove(both.id)
    assert repository.gc().packs_rewritten == 0
    tree = repository.store.tree(rest.root)
    assert bytes(chunks(repository, [tree.entries[0].content or b""])[0]) == other


def test_two_gcs_do_not_run_at_once(repository: Repository) -> None:
    with exclusive(repository.directory.gc_lock, "gc"), pytest.raises(LockedError):
        repository.gc()


def test_the_way_past_removed_snapshots_is_shortened_and_kept(repository: Repository) -> None:
    left, right = save(repository, {"l": b"l"}), save(repository, {"r": b"r"})
    merge = save(repository, {"m": b"m"}, parents=[left.id, right.id], branch="main")
    line = [merge]
    for number in range(6):
        line.append(save(repository, {"f": b"%d" % number}, parents=[line[-1].id], branch="main"))
    repository.remove_many([one.id for one in line[:-1]])
    repository.gc()
    repository.gc()
    with repository.index.read() as view:
        assert view.count(REMOVED) == 1
    assert {one.id for one in repository.snapshots()} == {left.id, right.id, line[-1].id}
    assert repository.resolve("main~1") == left.id
    assert repository.fsck().clean


def test_a_session_may_commit_a_child_of_what_was_removed_meanwhile(repository: Repository) -> None:
    grandparent = save(repository, {"g": b"g"}, branch="main")
    parent = save(repository, {"p": b"p"}, parents=[grandparent.id], branch="main")
    session = repository.session()
    repository.remove(parent.id)
    repository.gc()
    repository.gc()
    save(repository, {"c": b"c"}, parents=[parent.id], branch="main", session=session)
    repository.gc()
    assert repository.resolve("main~1") == grandparent.id


def test_orphans_of_a_crash_go(repository: Repository) -> None:
    save(repository, {"f": noise(3000)}, branch="main")
    packs = repository.directory.packs
    (packs / "00000077.pack").write_bytes(encode_pack_header(0x77, DATA_PACK, repository.directory.id) + noise(50_000))
    (packs / "00000078.pack").touch()
    (packs / "00000079.pack").write_bytes(bytes(8192))
    for directory in (repository.directory.sessions, repository.directory.pins):
        (directory / "123-0123456789ab").write_bytes(bytes(8))
    assert repository.fsck().clean
    descriptors = len(os.listdir("/proc/self/fd"))
    repository.gc()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(list(packs.iterdir())) == 1
    assert list(repository.directory.sessions.iterdir()) == []
    assert list(repository.directory.pins.iterdir()) == []


def test_what_no_session_made_stays_in_packs(repository: Repository) -> None:
    save(repository, {"f": noise(3000)}, branch="main")
    packs = repository.directory.packs
    theirs = {
        "00000077.pack": noise(5000),
        "00000078.pack": encode_pack_header(0x78, DATA_PACK, bytes(16)) + noise(5000),
        "00000079.pack": encode_pack_header(0x78, DATA_PACK, repository.directory.id) + noise(5000),
        "0000007A.pack": encode_pack_header(0x7A, DATA_PACK, repository.directory.id),
        "+0000001.pack": b"",
        "notes": b"somebody's own",
    }
    for name, data in theirs.items():
        (packs / name).write_bytes(data)
    repository.gc()
    assert {name: (packs / name).read_bytes() for name in theirs} == theirs


def test_a_disk_that_is_full_stops_the_copies_only(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wholly dead goes; a copy that finds no room leaves nothing behind, and the next gc makes it."""
    stay, shared = noise(30_000), noise(30_000)
    gone = save(repository, {"gone": noise(50_000)}, branch="gone")
    both = save(repository, {"large": noise(400_000), "stay": stay}, branch="both")
    rest = save(repository, {"stay": stay, "shared": shared}, branch="rest")
    repository.remove_many([gone.id, both.id])

    def full(step: disk.Step) -> None:
        if step.op == "write" and step.path.endswith(".pack"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "observer", full)
    with pytest.raises(StorageError, match="no room for copies") as caught:
        repository.gc()
    monkeypatch.setattr(disk, "observer", None)
    assert "512 MiB" in (caught.value.hint or "")
    assert len(pack_paths(repository)) == 2
    assert repository.fsck().clean
    assert repository.gc().packs_rewritten == 1
    assert contents(repository, rest.id) == {"stay": stay, "shared": shared}


def test_on_a_disk_that_is_nearly_full_old_packs_go_one_by_one(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    for number in range(3):
        stay = noise(9000)
        dead = save(repository, {"large": noise(100_000), "stay": stay}, branch=f"dead-{number}")
        kept.append((save(repository, {"stay": stay}, branch=f"stay-{number}"), stay))
        repository.remove(dead.id)
    most = 0

    def look(step: disk.Step) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in pack_paths(repository)))

    before = sum(path.stat().st_size for path in pack_paths(repository))
    monkeypatch.setattr(repack.os, "statvfs", lambda path: os.statvfs_result((4096, 4096, 9, 9, 9, *[0] * 5)))
    monkeypatch.setattr(disk, "observer", look)
    assert repository.gc().packs_rewritten == 3
    monkeypatch.setattr(disk, "observer", None)
    assert most < before + 20_000, "one copy at a time"
    assert all(contents(repository, one.id) == {"stay": stay} for one, stay in kept)


def test_what_is_not_ours_is_left_alone(repository: Repository) -> None:
    snapshot = save(repository, {"f": noise(3000)}, branch="main")
    directory = repository.directory
    strange = [
        directory.packs / "notes.txt",
        directory.packs / "000000ff.pack",
        directory.sessions / "folder",
        directory.pins / "folder",
    ]
    for path in strange[1:]:
        path.mkdir()
    strange[0].write_text("mine")
    repository.gc()
    assert all(path.exists() for path in strange)
    assert repository.fsck().clean
    assert contents(repository, snapshot.id)


# --- beside running saves


def test_what_a_running_session_found_is_not_taken(repository: Repository) -> None:
    data = noise(4096)
    old = save(repository, {"f": data}, branch="old")
    session = repository.session()
    assert session.lookup_many([chunk_id(data)]) == [True]
    repository.remove(old.id)
    report = repository.gc()
    assert (report.chunks_removed, report.chunks_condemned) == (0, 3)
    snapshot = save(repository, {"f": data}, branch="new", session=session)
    repository.gc()
    assert contents(repository, snapshot.id) == {"f": data}
    assert condemned(repository) == 0
    assert repository.fsck().clean


def test_what_is_condemned_is_stored_again_by_a_later_session(repository: Repository) -> None:
    data = noise(4096)
    old = save(repository, {"f": data}, branch="old")
    early = repository.session()
    repository.remove(old.id)
    repository.gc()
    assert condemned(repository) > 0
    late = repository.session()
    assert late.lookup_many([chunk_id(data)]) == [False]
    snapshot = save(repository, {"f": data}, branch="new", session=late)
    early.abort()
    repository.gc()
    assert contents(repository, snapshot.id) == {"f": data}
    assert repository.fsck().clean


def commit_unseen(session: Session, content: bytes, branch: str, name: bytes = b"f") -> Snapshot:
    """A snapshot of one file whose content the session does not look up again."""
    tree = Tree((Entry(name, "f", 0o644, 0, 0, 0, size=4096, content=content),))
    return session.commit_snapshot(session.put_object(FrameKind.TREE, encode_tree(tree)), branch=branch)


@pytest.mark.parametrize("readable", [True, False], ids=["a tree", "a damaged tree"])
def test_an_old_mark_does_not_outlive_a_life_in_between(repository: Repository, readable: bool) -> None:
    """A chunk is condemned, then committed by a session that found it before; a later session takes it over from that
    snapshot without looking it up; the snapshot goes. The first mark is older than that session, and must not count."""
    data = noise(4096)
    first = save(repository, {"f": data}, branch="a")
    finder = repository.session()
    assert finder.lookup_many([chunk_id(data)]) == [True]
    repository.remove(first.id)
    repository.gc()
    middle = commit_unseen(finder, chunk_id(data), "b", b"middle")
    heir = repository.session()
    if not readable:  # what the snapshot reached cannot be told any more
        path, offset = frame_of(repository, middle.root)
        damage(path, offset + HEADER_SIZE)
    repository.remove(middle.id)
    assert repository.gc().chunks_removed == 0
    last = commit_unseen(heir, chunk_id(data), "c", b"last")
    repository.gc()
    assert contents(repository, last.id) == {"last": data}
    assert repository.fsck().clean


def test_a_chunk_is_never_stored_against_what_is_stored_against_it(repository: Repository) -> None:
    """A base is condemned while a session that found it stores a difference to it; the next session, which may not see
    the base, stores it again, as a difference to that difference."""
    one = noise(4096)
    two = bytes([one[0] ^ 1]) + one[1:]
    old = save(repository, {"one": one}, branch="old")
    finder = repository.session()
    assert finder.lookup_many([chunk_id(one)]) == [True]
    repository.remove(old.id)
    repository.gc()
    put_against(finder, two, one, chunk_id(one))
    middle = commit_unseen(finder, chunk_id(two), "middle", b"two")
    with repository.session() as later:
        assert later.lookup_many([chunk_id(one), chunk_id(two)]) == [False, True]
        put_against(later, one, two, chunk_id(two), depth=1)
        last = commit_unseen(later, chunk_id(one), "last", b"one")
    assert contents(repository, middle.id) == {"two": two}
    assert contents(repository, last.id) == {"one": one}
    repository.gc()
    assert contents(repository, middle.id) == {"two": two}
    assert contents(repository, last.id) == {"one": one}
    assert repository.fsck().clean


def condemned_pair(repository: Repository) -> tuple[bytes, bytes, Session]:
    """A chunk and another that is a difference to it, both condemned; while the session runs, neither goes."""
    one = noise(4096)
    two = bytes([one[0] ^ 1]) + one[1:]
    with repository.session() as session:
        put_against(session, two, one, put(session, one))
        old = save(repository, {"two": two}, branch="old", session=session)
    blocker = repository.session()
    repository.remove(old.id)
    repository.gc()
    return one, two, blocker


def test_a_condemned_difference_is_replaced_by_what_a_session_stores_whole(repository: Repository) -> None:
    """Its base is condemned, too, and goes while that session still runs."""
    one, two, blocker = condemned_pair(repository)
    later = repository.session()
    assert later.lookup_many([chunk_id(one), chunk_id(two)]) == [False, False]
    put(later, two)
    later.publish()
    blocker.abort()
    repository.gc()
    new = save(repository, {"two": two}, branch="new", session=later)
    assert contents(repository, new.id) == {"two": two}
    assert repository.fsck().clean


def test_a_condemned_base_and_its_difference_never_form_a_circle(repository: Repository) -> None:
    """Both are condemned; a later session stores them again, the other way round."""
    one, two, blocker = condemned_pair(repository)
    with repository.session() as later:
        assert later.lookup_many([chunk_id(one), chunk_id(two)]) == [False, False]
        first = put(later, two)
        put_against(later, one, two, first)
        new = save(repository, {"one": one, "two": two}, branch="new", session=later)
    assert contents(repository, new.id) == {"one": one, "two": two}
    blocker.abort()
    repository.gc()
    assert contents(repository, new.id) == {"one": one, "two": two}
    assert repository.fsck().clean


def test_two_sessions_that_store_the_same_against_each_other_stay_readable(repository: Repository) -> None:
    one = noise(4096)
    two = bytes([one[0] ^ 1]) + one[1:]
    left, right = repository.session(), repository.session()
    put_against(left, two, one, put(left, one))
    put_against(right, one, two, put(right, two))
    made = [save(repository, {"1": one, "2": two}, branch=name, session=s) for name, s in (("l", left), ("r", right))]
    for snapshot in made:
        assert contents(repository, snapshot.id) == {"1": one, "2": two}
        repository.remove(made[0].id) if snapshot is made[0] else None
        repository.gc()
    assert repository.fsck().clean


COLLECTOR = """
import sys
from ijfs_engine import Repository
with Repository.open(sys.argv[1]) as repository:
    for _ in range(int(sys.argv[2])):
        repository.gc()
"""


def test_saves_readers_and_gc_in_other_processes_run_together(repository: Repository) -> None:
    """A pool of blocks that snapshots share; branches come and go while gc runs in another process."""
    blocks = [noise(5000) for _ in range(12)]
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        mine = random.Random(number)
        try:
            while collector.poll() is None:
                files = {str(n): blocks[n] for n in mine.sample(range(12), 4)}
                snapshot = save(repository, files, branch=f"b{number}")
                assert contents(repository, snapshot.id) == files
                if mine.random() < 0.5:
                    repository.refs.delete_branch(f"b{number}")
        except BaseException as error:
            wrong.append(error)

    command = [sys.executable, "-c", COLLECTOR, str(repository.path), "100"]
    with subprocess.Popen(command) as collector:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert collector.wait(120) == 0
    assert wrong == []
    report = repository.fsck()
    assert report.clean, report.damage[:3]
    for snapshot in repository.snapshots():
        assert set(contents(repository, snapshot.id).values()) <= set(blocks)


def test_a_reader_that_has_packs_open_outlives_repacking(repository: Repository) -> None:
    files = {"a": noise(30_000)}
    keep = save(repository, {**files, "b": noise(300_000)}, branch="both")
    rest = save(repository, files, branch="rest")
    reader = Repository.open(repository.path)
    assert contents(reader, rest.id) == files
    repository.remove(keep.id)
    assert repository.gc().packs_rewritten == 1
    assert contents(reader, rest.id) == files
    reader.store.close()
    assert contents(reader, rest.id) == files
    reader.close()


def test_gc_of_nothing_is_quick(repository: Repository) -> None:
    started = time.monotonic()
    assert repository.gc().freed == 0
    assert time.monotonic() - started < patient(2)
    with repository.index.read() as view:
        assert view.count(CHUNKS) == 0


def test_what_came_and_went_during_gc_is_not_taken(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed after the walk and removed before the sweep: a session that began meanwhile may have taken it over."""
    save(repository, {"a": noise(9000)}, branch="main")
    wanted = noise(50_000)
    condemn, oldest_session = gc._Collector._condemn, gc._Collector._oldest_session
    passing: list[Snapshot] = []
    writers: list[tuple[SnapshotWriter, Entry]] = []

    def condemn_what_was_just_listed(self: gc._Collector, kept: ReachableSet, *others: Any) -> None:
        if not passing:
            passing.append(save(repository, {"q": wanted}, branch="passing"))
        condemn(self, kept, *others)

    def begin_and_remove_after_the_look(self: gc._Collector) -> int:
        oldest = oldest_session(self)
        if writers:
            return oldest
        writer = repository.begin([passing[0].id])
        writers.append((writer, repository.reader().lookup(passing[0].root, "q")))
        repository.remove(passing[0].id)
        return oldest

    monkeypatch.setattr(gc._Collector, "_condemn", condemn_what_was_just_listed)
    monkeypatch.setattr(gc._Collector, "_oldest_session", begin_and_remove_after_the_look)
    repository.gc()
    monkeypatch.undo()
    [(writer, entry)] = writers
    with writer:
        writer.reuse("q", entry)
        kept = writer.commit(branch="kept")
    assert repository.fsck().clean
    assert contents(repository, kept.id) == {"q": wanted}


def test_what_a_saver_that_died_wrote_into_the_journal_stays(repository: Repository, tmp_path: Path) -> None:
    """It died between the journal and the index: to who has the repository open, its pack belongs to nobody."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(noise(50_000))
    save(repository, {"a": noise(9000)}, branch="main")
    dying = (
        "import os, sys; from pathlib import Path; from ijfs_engine import Repository, import_directory;"
        "from ijfs_engine.storage.journal import Journal;"
        "repository = Repository.open(sys.argv[1]);"
        "Journal.set_position = lambda *_: os._exit(9);"
        "import_directory(repository, Path(sys.argv[2]), branch='new')"
    )
    died = subprocess.run([sys.executable, "-c", dying, repository.path, tmp_path / "tree"], timeout=patient(60))
    assert died.returncode == 9
    repository.gc()
    assert "new" in repository.refs.branches()
    assert repository.fsck().clean
