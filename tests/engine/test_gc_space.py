"""What gc gives back: after it the disk holds what is needed and little else, whatever the chunks are like; a dry run
says so before; and a pack that stays because it is damaged is named, at no cost in space."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from criu_images import image_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storekit import chunks, damage, frame_of, pack_paths, put, put_against

from ijfs_engine import Repository, Snapshot
from ijfs_engine.format.frames import HEADER_SIZE, MAX_CHUNK, FrameKind, chunk_id
from ijfs_engine.format.records import Entry, GcReport, Tree, encode_tree
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


def blocks_of_packs(repository: Repository) -> int:
    return sum(path.stat().st_blocks * 512 for path in pack_paths(repository))


def in_packs(repository: Repository) -> int:
    return sum(path.stat().st_size for path in pack_paths(repository))


def check_space(repository: Repository) -> None:
    """Of each pack at most `SPARSE` is dead."""
    needed = repository.du().total.stored
    assert in_packs(repository) <= needed / (1 - SPARSE) + PACK_HEADER_SIZE * len(pack_paths(repository)) / (1 - SPARSE)


def check_agree(expected: GcReport, report: GcReport, packs: int) -> None:
    """To a block for each file: a filesystem may need one more of its own for a file in pieces."""
    assert abs(expected.bytes_after - report.bytes_after) <= 4096 * (packs + 1)


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
        report = repository.gc()
        assert report.packs_kept == expected.packs_kept == ()
        check_agree(expected, report, 2)
        check_space(repository)
        check_whole(repository, kept)
        after = in_packs(repository)
        repository.gc()
        assert in_packs(repository) <= after


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lots=st.lists(st.tuples(st.lists(piece, min_size=1, max_size=4), st.booleans()), max_size=20),
    images=st.integers(0, 4),
    differences=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_a_dry_run_says_what_the_run_frees(
    tmp_path_factory: pytest.TempPathFactory,
    lots: list[tuple[list[bytes], bool]],
    images: int,
    differences: float,
) -> None:
    """Many small packs and few, process images with fingerprints, differences that are stored whole."""
    with Repository.init(tmp_path_factory.mktemp("repo") / "r") as repository:
        if differences:
            line_of_differences(repository, differences)
        for number, (pieces, stays) in enumerate(lots):
            made = commit(repository, pieces, f"lot{number}")
            if not stays:
                repository.remove(made.id)
        head: list[bytes] = []
        for number in range(images):
            with repository.begin(head) as writer:
                writer.add_images("images", dict(image_set({7: {0x7F00_0000_0000: random_bytes(9 * 4096, number)}})))
                head = [writer.commit(branch="image").id]
        packs = len(pack_paths(repository))
        expected = repository.gc(dry_run=True)
        report = repository.gc()
        assert (expected.packs_removed, expected.packs_rewritten, expected.chunks_removed, expected.bytes_before) == (
            report.packs_removed, report.packs_rewritten, report.chunks_removed, report.bytes_before,
        )  # fmt: skip
        check_agree(expected, report, packs)
        assert repository.fsck().clean


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


# --- bases that outlive what was stored against them


def changed(piece: bytes, seed: int, share: float) -> bytes:
    """The same bytes but for a share of the stretches of 64."""
    lines = [piece[at : at + 64] for at in range(0, len(piece), 64)]
    choose = random.Random(seed)
    return b"".join(choose.randbytes(len(line)) if choose.random() < share else line for line in lines)


def line_of_differences(repository: Repository, share: float, length: int = 2) -> list[bytes]:
    """Chunks that are stored against ones whose snapshots are gone; the last form of each."""
    plain = [random_bytes(40_000, number) for number in range(8)]
    commit(repository, plain, "main")
    for step in range(1, length):
        newer = [changed(piece, 100 * step + number, share) for number, piece in enumerate(plain)]
        with repository.session() as session:
            for piece, base in zip(newer, plain, strict=True):
                put_against(session, piece, base, chunk_id(base), step - 1)
            session.publish()
        commit(repository, newer, "main")
        plain = newer
    head = repository.resolve("main")
    repository.remove_many([one.id for one in repository.snapshots() if one.id != head])
    return plain


@pytest.mark.parametrize(("share", "length"), [(0.5, 2), (0.3, 4)])
def test_a_base_that_only_one_difference_needs_goes_where_that_gives_space(
    repository: Repository, share: float, length: int
) -> None:
    plain = line_of_differences(repository, share, length)
    alone = sum(map(len, plain))
    assert repository.du().total.stored > 1.3 * alone
    before = in_packs(repository)
    on_disk = blocks_of_packs(repository)
    expected = repository.gc(dry_run=True)
    report = repository.gc()
    assert in_packs(repository) < 1.02 * alone
    assert report.chunks_removed == expected.chunks_removed > 0
    assert abs(on_disk - blocks_of_packs(repository) - expected.freed) < 0.02 * before
    check_space(repository)
    check_whole(repository, plain)
    assert [place and place.depth for place in repository.store.chunk_info([chunk_id(one) for one in plain])] == [0] * 8


def test_a_small_difference_stays_with_its_base(repository: Repository) -> None:
    plain = line_of_differences(repository, 0.02)
    report = repository.gc()
    assert all(info is not None and info.depth == 1 for info in repository.store.chunk_info(list(map(chunk_id, plain))))
    assert report.packs_rewritten == 0
    check_whole(repository, plain)


def test_a_base_of_many_differences_stays(repository: Repository) -> None:
    base = random_bytes(40_000, 1)
    commit(repository, [base], "base")
    several = [changed(base, seed, 0.4) for seed in range(6)]
    with repository.session() as session:
        for piece in several:
            put_against(session, piece, base, chunk_id(base))
        session.publish()
    commit(repository, several, "main")
    repository.refs.delete_branch("base")
    assert repository.gc().chunks_removed == 0
    check_whole(repository, several)


def test_what_is_stored_whole_survives_a_lost_index(tmp_path: Path) -> None:
    """Old frames that named bases which are gone may still lie in a pack: they must not win."""
    path = tmp_path / "r"
    with Repository.init(path) as repository, pytest.MonkeyPatch.context() as patch:
        patch.setattr(repack, "SPARSE", 2.0)
        plain = line_of_differences(repository, 0.5)
        repository.gc()
    shutil.rmtree(path / "index")
    with Repository.open(path, damaged=True) as repository:
        repository.fsck(repair=True)
        check_whole(repository, plain)


def test_a_session_may_store_against_a_base_that_goes(repository: Repository) -> None:
    """It found the base before gc made what needed it whole."""
    plain = line_of_differences(repository, 0.5)
    base = random_bytes(40_000, 0)
    session = repository.session()
    assert session.lookup_many([chunk_id(base)]) == [True]
    report = repository.gc()
    assert report.chunks_condemned > 0
    other = changed(base, 77, 0.3)
    put_against(session, other, base, chunk_id(base))
    tree = Tree((Entry(b"f", "f", 0o644, 0, 0, 0, size=len(other), content=chunk_id(other)),))
    with session:
        session.commit_snapshot(session.put_object(FrameKind.TREE, encode_tree(tree)), branch="other")
    repository.gc()
    check_whole(repository, [*plain, other])


def test_a_difference_that_is_damaged_keeps_its_base(repository: Repository) -> None:
    plain = line_of_differences(repository, 0.5)
    path, offset = frame_of(repository, chunk_id(plain[3]))
    damage(path, offset + HEADER_SIZE + 60)
    repository.gc()
    rest = [piece for piece in plain if piece is not plain[3]]
    assert [bytes(one) for one in chunks(repository, list(map(chunk_id, rest)))] == rest
    info = repository.store.chunk_info([chunk_id(plain[3]), chunk_id(random_bytes(40_000, 3))])
    assert all(one is not None for one in info), "the base may serve to bring it back"


def test_a_program_that_changes_and_is_pruned_takes_a_bounded_share_of_disk(tmp_path: Path) -> None:
    """Real images: a third of the lines of half the pages change at each of 12 saves; only the newest stays."""
    choose = random.Random(3)
    memory = bytearray(choose.randbytes(400 * 4096))
    with Repository.init(tmp_path / "r") as repository:
        head: Snapshot | None = None
        for _ in range(12):
            with repository.begin([head.id] if head else []) as writer:
                writer.add_images("images", image_set({7: {0x7F00_0000_0000: bytes(memory)}}))
                new = writer.commit(branch="main")
            if head:
                repository.remove(head.id)
            head = new
            repository.gc()
            # Chunks of which a snapshot has a part are whole on disk, hence not 1.
            assert in_packs(repository) < 1.7 * len(memory)
            for page in choose.sample(range(400), 200):
                at = page * 4096 + choose.randrange(2800)
                memory[at : at + 1200] = choose.randbytes(1200)
        assert repository.fsck().clean
