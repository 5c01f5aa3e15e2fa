"""A branch's files taken home: what is new, changed, deleted, and what the machine has changed meanwhile.

Most tests write a branch's layer by hand, as the overlay would have it (as root: whiteouts are devices); the last ones
run programs.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.adopt import noted
from ijfs.live.adopt.apply import apply
from ijfs.live.adopt.branch import Branch, LayerFiles, SnapshotFiles
from ijfs.live.adopt.plan import TICK_NS, Step, plan, scope_of
from ijfs.live.checkpoint.ahead import StatKey
from ijfs.live.checkpoint.snapshot_io import live_meta
from ijfs.live.client import api as client
from ijfs.live.client.adopt import Adoption
from ijfs.live.client.winner import family, settle
from ijfs.live.model.records import FilesOrigin, Volume
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

pytestmark = pytest.mark.root


class Pair:
    """A directory of the machine, and the layer that a branch has over it."""

    def __init__(self, top: Path) -> None:
        self.host, self.upper = top / "host", top / "upper"
        self.host.mkdir()
        self.upper.mkdir()
        self.since_ns = 0
        self.noted: dict[bytes, StatKey] = {}

    def begin(self) -> None:
        """What the machine has is old now: the branch begins."""
        time.sleep(TICK_NS / 1e9 + 0.02)
        self.since_ns = time.time_ns()
        time.sleep(0.01)

    def branch(self, *, machine: str = "") -> Branch:
        origin = FilesOrigin(machine or FilesOrigin.here().machine, self.since_ns)
        files = LayerFiles([("/", self.upper.parent / "nothing"), (str(self.host), self.upper)])
        return Branch("b", str(self.host), files, origin, (Volume("v0", str(self.host)),))

    def steps(self, *paths: str, branch: Branch | None = None) -> list[Step]:
        branch = branch or self.branch()
        with Repository.init(self.host.parent / f"repo-{time.monotonic_ns()}") as repository:
            return list(plan(branch, scope_of(branch, paths), self.noted, repository.reader()))

    def seen(self, **options: Branch) -> dict[str, tuple[str, bool]]:
        """name → (change, whether it is in conflict)."""
        prefix = len(os.fsencode(self.host)) + 1
        return {os.fsdecode(s.path[prefix:]): (s.change, bool(s.conflict)) for s in self.steps(**options)}

    def take_home(self) -> None:
        done = list(apply(self.branch(), self.steps()))
        assert not [item for item in done if item.left]
        self.noted |= {item.step.path: item.key for item in done if item.key is not None}

    def whiteout(self, name: str) -> None:
        os.mknod(self.upper / name, stat.S_IFCHR, os.makedev(0, 0))

    def copied_up(self, name: str, content: str) -> None:
        (self.upper / name).write_text(content)
        os.setxattr(self.upper / name, "trusted.overlay.origin", b"\0handle")


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_new_changed_and_deleted_files_are_taken_home(pair: Pair) -> None:
    (pair.host / "changed").write_text("old")
    (pair.host / "deleted").write_text("old")
    (pair.host / "untouched").write_text("old")
    (pair.host / "gone").mkdir()
    (pair.host / "gone" / "inner").write_text("old")
    pair.begin()
    pair.copied_up("changed", "new and longer")
    pair.whiteout("deleted")
    pair.whiteout("gone")
    (pair.upper / "sub" / "deep").mkdir(parents=True)
    (pair.upper / "sub" / "deep" / "file").write_bytes(b"x" * 70_000 + bytes(1 << 20) + b"y")
    (pair.upper / "sub" / "deep" / "file").chmod(0o640)
    os.setxattr(pair.upper / "sub" / "deep" / "file", "user.note", b"kept")
    (pair.upper / "link").symlink_to("sub/deep/file")
    os.utime(pair.upper / "changed", ns=(1, 10**18 + 5))

    assert pair.seen() == {
        "changed": ("changed", False),
        "deleted": ("removed", False),
        "gone": ("removed", False),
        "link": ("added", False),
        "sub": ("added", False),
        "sub/deep": ("added", False),
        "sub/deep/file": ("added", False),
    }
    assert (pair.host / "changed").read_text() == "old", "to look is not to write"
    pair.take_home()
    assert (pair.host / "changed").read_text() == "new and longer"
    assert (pair.host / "changed").stat().st_mtime_ns == 10**18 + 5
    assert not [name for name in ("deleted", "gone") if (pair.host / name).exists()]
    taken = pair.host / "sub" / "deep" / "file"
    assert taken.read_bytes() == (pair.upper / "sub" / "deep" / "file").read_bytes()
    assert stat.S_IMODE(taken.stat().st_mode) == 0o640
    assert os.getxattr(taken, "user.note") == b"kept"
    assert "trusted.overlay.origin" not in os.listxattr(pair.host / "changed")
    assert taken.stat().st_blocks * 512 < 1 << 20, "holes stay holes"
    assert os.readlink(pair.host / "link") == "sub/deep/file"
    assert pair.seen() == {}, "nothing is left to take home"


def test_what_the_machine_changed_meanwhile_is_in_conflict(pair: Pair) -> None:
    for name in ("both", "deleted-here", "deleted-there", "same", "replaced"):
        (pair.host / name).write_text("old")
    (pair.host / "directory").mkdir()
    (pair.host / "directory" / "inner").write_text("old")
    pair.begin()
    pair.copied_up("both", "branch's")
    (pair.host / "both").write_text("machine's")
    pair.whiteout("deleted-here")
    (pair.host / "deleted-here").write_text("machine's")
    pair.copied_up("deleted-there", "branch's")
    (pair.host / "deleted-there").unlink()
    pair.copied_up("same", "alike")
    (pair.host / "same").write_text("alike")
    (pair.upper / "replaced").mkdir()
    (pair.host / "replaced").write_text("machine's")
    pair.whiteout("directory")
    (pair.host / "directory" / "later").write_text("machine's")
    (pair.upper / "new-on-both").write_text("branch's")
    (pair.host / "new-on-both").write_text("machine's")
    assert pair.seen() == {
        "both": ("changed", True),
        "deleted-here": ("removed", True),
        "deleted-there": ("added", True),
        "replaced": ("changed", True),
        "directory": ("removed", True),
        "new-on-both": ("changed", True),
    }


def test_what_the_branch_renamed_is_no_conflict_where_nothing_was_deleted(pair: Pair) -> None:
    (pair.host / "before").write_text("text")
    pair.begin()
    pair.whiteout("before")
    pair.copied_up("after", "text")  # a rename takes the overlay's note of its origin along
    assert pair.seen() == {"before": ("removed", False), "after": ("added", False)}


def test_a_directory_made_anew_hides_what_was_in_it(pair: Pair) -> None:
    (pair.host / "out").mkdir()
    (pair.host / "out" / "stale").write_text("old")
    (pair.host / "out" / "kept").write_text("old")
    pair.begin()
    (pair.upper / "out").mkdir()
    os.setxattr(pair.upper / "out", "trusted.overlay.opaque", b"y")
    (pair.upper / "out" / "kept").write_text("new")
    assert pair.seen() == {"out/kept": ("changed", False), "out/stale": ("removed", False)}
    pair.take_home()
    assert os.listdir(pair.host / "out") == ["kept"]


def test_on_another_machine_everything_that_differs_is_a_conflict(pair: Pair) -> None:
    (pair.host / "file").write_text("this machine's")
    (pair.host / "out").mkdir()
    (pair.host / "out" / "this machine's").touch()
    pair.begin()
    pair.copied_up("file", "branch's")
    (pair.upper / "out").mkdir()
    os.setxattr(pair.upper / "out", "trusted.overlay.opaque", b"y")
    (pair.upper / "fresh").write_text("branch's")
    elsewhere = pair.branch(machine="another")
    assert pair.seen(branch=elsewhere) == {"file": ("changed", True), "fresh": ("added", False)}


def test_what_an_earlier_adopt_wrote_is_no_conflict_and_what_somebody_wrote_after_it_is(pair: Pair) -> None:
    (pair.host / "file").write_text("old")
    pair.begin()
    pair.copied_up("file", "first")
    pair.take_home()
    (pair.upper / "file").write_text("second")
    assert pair.seen() == {"file": ("changed", False)}
    pair.take_home()
    assert (pair.host / "file").read_text() == "second"
    (pair.upper / "file").write_text("third")
    (pair.host / "file").write_text("somebody's")
    assert pair.seen() == {"file": ("changed", True)}


def test_notes_that_are_damaged_or_lost_are_as_none(tmp_path: Path) -> None:
    path = tmp_path / "adopted"
    key = StatKey(1, 2, 3, 4, 5)
    noted.write(path, {b"/a\xff": key})
    assert noted.read(path) == {b"/a\xff": key}
    path.write_bytes(b"\xc1 damaged")
    assert noted.read(path) == {}
    assert noted.read(tmp_path / "none") == {}


def test_a_change_between_looking_and_writing_is_left_alone(pair: Pair) -> None:
    (pair.host / "file").write_text("old")
    pair.begin()
    pair.copied_up("file", "branch's")
    (pair.upper / "fresh").write_text("branch's")
    steps = pair.steps()
    (pair.host / "file").write_text("written just now")
    (pair.host / "fresh").write_text("written just now")
    done = list(apply(pair.branch(), steps))
    assert [bool(item.left) for item in done] == [True, True]
    assert {p.name: p.read_text() for p in pair.host.iterdir()} == dict.fromkeys(("file", "fresh"), "written just now")


def test_no_symbolic_link_of_the_machine_is_followed(pair: Pair, tmp_path: Path) -> None:
    (pair.host / "sub").mkdir()
    pair.begin()
    (pair.upper / "sub").mkdir()
    (pair.upper / "sub" / "file").write_text("branch's")
    steps = pair.steps()
    (tmp_path / "elsewhere").mkdir()
    (pair.host / "sub").rmdir()
    (pair.host / "sub").symlink_to(tmp_path / "elsewhere")
    done = list(apply(pair.branch(), steps))
    assert [bool(item.left) for item in done] == [True]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_file_that_is_written_meanwhile_is_taken_home_whole_or_not_at_all(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair.host / "log").write_text("old")
    pair.begin()
    pair.copied_up("log", "a" * 100)
    steps = pair.steps()
    real = LayerFiles.pieces

    def written_meanwhile(self: LayerFiles, path: bytes, file: object) -> object:
        for piece in real(self, path, file):  # type: ignore[arg-type]
            with (pair.upper / "log").open("a") as log:
                log.write("more")
            yield piece

    monkeypatch.setattr(LayerFiles, "pieces", written_meanwhile)
    assert pair.seen() == {"log": ("changed", False)}
    done = list(apply(pair.branch(), steps))
    assert "is being written" in done[0].left
    assert (pair.host / "log").read_text() == "old"
    assert os.listdir(pair.host) == ["log"]


def test_paths_are_the_programs_and_what_it_did_not_write_is_said(pair: Pair) -> None:
    pair.begin()
    (pair.upper / "a").mkdir()
    (pair.upper / "a" / "one").touch()
    (pair.upper / "two").touch()
    assert [s.path for s in pair.steps("two")] == [os.fsencode(pair.host / "two")]
    assert [s.path for s in pair.steps(str(pair.host / "a"))][-1] == os.fsencode(pair.host / "a" / "one")
    with pytest.raises(IjfsError, match="has written nothing at"):
        pair.steps("three")


NAMES = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"])
OPERATIONS = st.lists(st.tuples(st.sampled_from(["write", "remove", "mkdir"]), NAMES, st.integers(0, 3)), max_size=8)


def _play(top: Path, operations: list[tuple[str, str, int]]) -> None:
    for what, name, content in operations:
        path = top / name
        if what == "remove" and path.is_file():
            path.unlink()
        elif what == "write" and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))
        elif what == "mkdir" and not path.exists():
            path.mkdir(parents=True)


def _files(top: Path) -> dict[str, str]:
    return {str(p.relative_to(top)): p.read_text() for p in top.rglob("*") if p.is_file()}


@given(before=OPERATIONS, inside=OPERATIONS, outside=OPERATIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_changes_inside_and_outside_lose_nothing_of_the_machine(
    tmp_path_factory: pytest.TempPathFactory,
    overlay: Callable[[Path, Path, Path], Callable[[], None]],
    before: list[tuple[str, str, int]],
    inside: list[tuple[str, str, int]],
    outside: list[tuple[str, str, int]],
) -> None:
    """Against a real overlay: what is taken home without a conflict is what the branch sees, and every file that the
    machine has changed stays as it is."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    _play(pair.host, before)
    pair.begin()
    merged = pair.host.parent / "merged"
    umount = overlay(pair.host, pair.upper, merged)
    try:
        _play(merged, inside)
        branch_has, began = _files(merged), _files(pair.host)
    finally:
        umount()
    _play(pair.host, outside)
    machine_has = _files(pair.host)
    steps = [step for step in pair.steps() if not step.conflict]
    taken = {os.fsdecode(s.path).removeprefix(f"{pair.host}/") for s in steps}
    assert not [item.left for item in apply(pair.branch(), steps) if item.left]
    now = _files(pair.host)
    for name in machine_has.keys() | now.keys() | branch_has.keys():
        if machine_has.get(name) != began.get(name) and machine_has.get(name) is not None:
            assert now.get(name) == machine_has[name], f"{name} was changed on the machine"
        elif name in taken:
            assert now.get(name) == branch_has.get(name), name
    if not outside:
        assert now == branch_has


@pytest.fixture
def overlay() -> Callable[[Path, Path, Path], Callable[[], None]]:
    import subprocess

    from ijfs.live.sandbox import rootfs

    def mount(lower: Path, upper: Path, target: Path) -> Callable[[], None]:
        work = upper.parent / "work"
        work.mkdir()
        target.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work},{rootfs.OVERLAY_OPTIONS}"
        subprocess.run(["mount", "-t", "overlay", "overlay", target, "-o", options], check=True)
        return lambda: subprocess.run(["umount", target], check=True) and None

    return mount


WRITER = """
import os, sys, time
open("out.csv", "w").write("a,b\\n1,2\\n")
open("given.txt", "a").write("more\\n")
os.remove("old.txt")
open("/var/ijfs-test-elsewhere", "w").write("x")
open("ready", "w").close()
time.sleep(600)
"""


@pytest.mark.criu
def test_a_programs_files_come_home_while_it_runs_and_from_a_fork_after_it(live_env: LiveEnv) -> None:
    work = live_env.work
    (work / "given.txt").write_text("given\n")
    (work / "old.txt").write_text("old\n")
    time.sleep(TICK_NS / 1e9 + 0.02)
    live_env.python("writer", WRITER, cwd=str(work))
    with Repository.open(live_env.repo) as repository:
        assert eventually(lambda: b"ready" in {s.path.rpartition(b"/")[2] for s in _steps(repository, "writer")}, 20)
        found = Adoption(repository, "writer").compare(())
        assert {s.path.rpartition(b"/")[2]: (s.change, s.conflict) for s in found.steps} == {
            b"given.txt": ("changed", ""),
            b"old.txt": ("removed", ""),
            b"out.csv": ("added", ""),
            b"ready": ("added", ""),
        }
        assert b"/var/ijfs-test-elsewhere" in {s.path for s in found.elsewhere}
        saved = live_env.save("writer").snapshot
        list(Adoption(repository, "writer").take_home(found.steps))
        assert (work / "out.csv").read_text() == "a,b\n1,2\n"
        assert (work / "given.txt").read_text() == "given\nmore\n"
        assert not (work / "old.txt").exists()
        assert not Path("/var/ijfs-test-elsewhere").exists()

        live_env.restore(saved, "fork")
        program = f"open({str(work / 'out.csv')!r}, 'a').write('3,4\\n')"
        assert live_env.exec("fork", sys.executable, "-c", program) == 0
        assert {s.path.rpartition(b"/")[2]: s.conflict for s in _steps(repository, "fork")} == {b"out.csv": ""}, (
            "what the machine has is what both came from"
        )
        (work / "out.csv").write_text("mine\n")
        assert [bool(s.conflict) for s in _steps(repository, "fork")] == [True]
        from_snapshot = Adoption(repository, saved).branch
        assert isinstance(from_snapshot.files, SnapshotFiles)


@pytest.mark.criu
def test_the_winner_of_several_forks_gets_the_branch_and_the_others_are_saved_and_ended(live_env: LiveEnv) -> None:
    for name in ("lab", "bystander"):
        live_env.command(name, f"echo {name} > /tmp/is; sleep 600")
    live_env.save("bystander")
    client.fork(live_env.repo, "lab", ("a", "b"))
    assert live_env.exec("a", "sh", "-c", "echo a > /tmp/is") == 0
    live_env.save("lab", "went on")
    live_env.restore(live_env.save("b").snapshot, "grandchild")
    with Repository.open(live_env.repo) as repository:
        went_on = repository.refs.branches()["lab"]
        found = family(repository, "a")
        assert (found.branch, set(found.others)) == ("lab", {"lab", "b"}), "not what is a copy of a copy"
        assert family(repository, "grandchild").branch == "b"
        with pytest.raises(IjfsError, match="no copy"):
            family(repository, "bystander")
        assert settle(repository, found) == "lab.1"
        branches = repository.refs.branches()
        heads = [repository.snapshot(branches[name]) for name in ("lab", "lab.1")]
        assert [live_meta(head).spec.name for head in heads] == ["a", "lab"]
        assert went_on in repository.parents(branches["lab.1"]), "what `lab` did since is saved"
        live = {info.name for info in client.list_instances(live_env.repo) if info.status == "running"}
        assert live == {"a", "bystander", "grandchild"}


def _steps(repository: Repository, name: str) -> tuple[Step, ...]:
    return Adoption(repository, name).compare(()).steps
