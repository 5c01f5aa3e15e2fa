"""What gc gives back: after it the disk holds what is needed and little else, whatever the chunks are like; a dry run
says so before; and a pack that stays because it is damaged is named, at no cost in space."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storekit import chunks, damage, frame_of, pack_paths, put

from ijfs_engine import Repository, Snapshot
from ijfs_engine.format.frames import HEADER_SIZE, MAX_CHUNK, FrameKind, chunk_id
from ijfs_engine.format.records import Entry, Tree, encode_tree
from ijfs_engine.maintenance import repack
from ijfs_engine.maintenance.held_packs import holders
from ijfs_engine.maintenance.repack import SPARSE
from ijfs_engine.storage import pack
from ijfs_engine.storage.pack import PACK_HEADER_SIZE


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int) -> bytes:
    return (b"line %d of a text that packs well\n" % seed * (size // 20 + 1))[:size]


def commit(repository: Repository, pieces: Sequence[bytes], branch: str) -> Snapshot:
    """A snapshot of one-chunk files."""
    with repository.session() as session:
        entries = tuple(
            Entry(b"%06d" % number, "f", 0o644, 0, 0, 0, size=len(piece), content=put(session, piece))
            for number, piece in enumerate(pieces)
        )
        root = session.put_object(FrameKind.TREE, encode_tree(Tree(entries)))
        return session.commit_snapshot(root, branch=branch)


def in_packs(repository: Repository) -> int:
    return sum(path.stat().st_size for path in pack_paths(repository))


def check_space(repository: Repository) -> None:
    """Of each pack at most `SPARSE` is dead."""
    needed = repository.du().total.stored
    assert in_packs(repository) <= needed / (1 - SPARSE) + PACK_HEADER_SIZE * len(pack_paths(repository)) / (1 - SPARSE)


def check_whole(repository: Repository, kept: Sequence[bytes]) -> None:
    assert [bytes(one) for one in chunks(repository, [chunk_id(piece) for piece in kept])] == list(kept)
    assert repository.fsck().clean


sizes = st.one_of(
    st.integers(1, 5000),
    st.integers(60_000, 70_000),
    st.sampled_from([65_536 - 72, 65_536, MAX_CHUNK - 1, MAX_CHUNK]),
    st.integers(70_000, MAX_CHUNK),
)
piece = st.builds(
    lambda make, size, seed: make(size, seed), st.sampled_from([random_bytes, text]), sizes, st.integers(0, 1 << 30)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.tuples(piece, st.booleans()), min_size=1, max_size=24), window=st.sampled_from([1, 4 << 20]))
def test_after_gc_the_disk_holds_what_is_needed(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bytes, bool]], window: int
) -> None:
    with Repository.init(tmp_path_factory.mktemp("repo") / "r") as repository, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ijfs_engine.maintenance.pack_source._WINDOW", window)
        everything = commit(repository, [one for one, _ in pieces], "all")
        kept = [one for one, stays in pieces if stays]
        commit(repository, kept, "kept")
        repository.remove(everything.id)
        expected = repository.gc(dry_run=True)
        before = in_packs(repository)
        report = repository.gc()
        assert report.packs_kept == expected.packs_kept == ()
        assert abs(before - in_packs(repository) - expected.freed) <= 4096 + PACK_HEADER_SIZE * 4
        check_space(repository)
        check_whole(repository, kept)
        after = in_packs(repository)
        repository.gc()
        assert in_packs(repository) <= after


def test_what_a_large_import_leaves_comes_back(repository: Repository, tmp_path: Path) -> None:
    """Two large files of random bytes, one of them dropped: half of the space, at the first gc."""
    keep, gone = ([random_bytes(MAX_CHUNK, seed + number) for number in range(24)] for seed in (0, 100))
    both = commit(repository, [one for pair in zip(keep, gone, strict=True) for one in pair], "both")
    commit(repository, keep, "keep")
    repository.remove(both.id)
    expected = repository.gc(dry_run=True)
    report = repository.gc()
    assert report.packs_rewritten == 1
    assert report.freed > 24 * MAX_CHUNK * 0.95
    assert abs(report.freed - expected.freed) < MAX_CHUNK
    check_whole(repository, keep)


@pytest.mark.parametrize("small_packs", [False, True], ids=["one new pack", "several new packs"])
def test_a_damaged_pack_is_named_and_takes_no_space_at_each_gc(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, small_packs: bool
) -> None:
    """Between two packs that are whole, so that copies of both neighbours stay while its own are taken back."""
    if small_packs:
        monkeypatch.setattr(repack, "PACK_TARGET", 300_000)
    monkeypatch.setattr(pack, "BUFFER_SIZE", 64 << 10)
    lots = [[random_bytes(90_000, 10 * lot + number) for number in range(6)] for lot in range(3)]
    both = [
        commit(repository, [*lot, *(random_bytes(90_000, 1000 + 10 * at + number) for number in range(6))], f"both{at}")
        for at, lot in enumerate(lots)
    ]
    for at, lot in enumerate(lots):
        commit(repository, lot, f"keep{at}")
    path, offset = frame_of(repository, chunk_id(lots[1][4]))
    damage(path, offset + HEADER_SIZE + 5)
    repository.remove_many([one.id for one in both])
    expected = repository.gc(dry_run=True)
    report = repository.gc()
    assert report.packs_rewritten == 2
    assert [kept.pack for kept in report.packs_kept] == [path.name]
    assert "fails its checksum" in report.packs_kept[0].why
    assert expected.packs_kept == report.packs_kept
    assert abs(expected.freed - report.freed) < 100_000
    monkeypatch.undo()
    after = in_packs(repository)
    again = repository.gc()
    assert [kept.pack for kept in again.packs_kept] == [path.name]
    assert in_packs(repository) == after
    for lot in (lots[0], lots[2], [one for one in lots[1] if one is not lots[1][4]]):
        assert [bytes(one) for one in chunks(repository, [chunk_id(piece) for piece in lot])] == lot
    assert len(repository.fsck().damage) == 1


# --- what is gone but open

HOLD = """
import sys
from ijfs_engine import Repository
repository = Repository.open(sys.argv[1])
reader = repository.reader()
snapshot = repository.snapshot(repository.resolve("gone"))
assert reader.open(reader.lookup(snapshot.root, "000000")).read(0, 10)
for line in sys.stdin:
    if line == "forget\\n":
        repository.forget_removed()
    print("ready", flush=True)
"""


def test_who_holds_removed_packs_is_named_until_they_let_go(repository: Repository) -> None:
    gone = commit(repository, [random_bytes(200_000, 1)], "gone")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(repository.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None

        def tell(word: str) -> None:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write(word + "\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "ready\n"

        tell("begin")
        repository.remove(gone.id)
        assert repository.gc(dry_run=True).held == ()
        [held] = repository.gc().held
        assert (held.pid, held.packs) == (holder.pid, 1)
        assert held.bytes >= 200_000
        assert "python" in held.name
        tell("forget")
        assert repository.gc().held == ()
        holder.stdin.close()
    assert holder.returncode == 0


def test_a_reader_at_work_lets_go_by_itself(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = [random_bytes(3000, 1)]
    commit(repository, keep, "keep")
    gone = commit(repository, [random_bytes(200_000, 2)], "gone")
    with Repository.open(repository.path) as other:
        chunks(other, [chunk_id(random_bytes(200_000, 2))])
        repository.remove(gone.id)
        [held] = repository.gc().held
        assert held.pid == os.getpid()
        monkeypatch.setattr(pack, "_LOOK_S", 0.0)
        chunks(other, [chunk_id(keep[0])])
        assert repository.gc().held == ()


def test_a_long_line_of_saves_that_are_pruned_takes_a_bounded_share_of_disk(repository: Repository) -> None:
    """Each save changes a tenth; the disk holds what the newest needs and little else, whoever looks on."""
    pieces = [random_bytes(20_000, number) for number in range(50)]
    worst = 0.0
    with Repository.open(repository.path) as onlooker:
        for turn in range(60):
            pieces[turn * 5 % 50 : turn * 5 % 50 + 5] = [
                random_bytes(20_000, 1000 + 5 * turn + one) for one in range(5)
            ]
            head = commit(repository, pieces, "main")
            reader = onlooker.reader()
            assert reader.open(reader.lookup(head.root, "000000")).read(0, 10)
            repository.remove_many([one.id for one in repository.snapshots() if one.id != head.id])
            if turn % 3 == 2:
                repository.gc()
                onlooker.forget_removed()
                assert holders(repository.directory) == []
                worst = max(worst, in_packs(repository) / repository.du().total.stored)
    assert worst <= 1 / (1 - SPARSE) + 0.01
