"""Folders of the host that a program works in: written through, kept by each save, a copy's own in a copy; and what
becomes of them when it goes back.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pexpect
import pytest
from live_env import LiveEnv, is_gone
from waiting import eventually, patient

from ijfs.live.adopt.branch import SnapshotFiles
from ijfs.live.checkpoint.layers import WritableLayer
from ijfs.live.checkpoint.workspace import LayerWalker
from ijfs.live.client import api as client
from ijfs.live.client.adopt import Adoption
from ijfs.live.client.files import program_files
from ijfs.live.client.folders import changed_since
from ijfs.live.errors import CommandError, ProgramRefusedError, SandboxError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import Event, Notice
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceSpec, Volume
from ijfs.live.sandbox import host_folders
from ijfs_engine import Repository
from ijfs_engine.write.arena import Arena

pytestmark = [pytest.mark.root]

live = pytest.mark.criu

# Appends a line to a log that it holds open, and writes a file anew, each time that it is asked.
WRITER = """
import os, time
log = open("log", "a")
number = 0
while True:
    if os.path.exists("/tmp/ask"):
        number += 1
        print(number, file=log, flush=True)
        with open("last", "w") as last:
            last.write(str(number))
        os.remove("/tmp/ask")
    time.sleep(0.01)
"""


def _root(env: LiveEnv, name: str) -> Path:
    return Path(f"/proc/{client.describe(env.repo, name).pid}/root")


def _ask(env: LiveEnv, name: str) -> None:
    asked = _root(env, name) / "tmp/ask"
    asked.touch()
    assert eventually(lambda: not asked.exists(), 20)


def _inside(env: LiveEnv, name: str, path: str) -> str:
    return (_root(env, name) / str(env.work / path)[1:]).read_text()


def _saved(env: LiveEnv, snapshot: str, directory: Path) -> dict[bytes, bytes]:
    """The files of a directory in a snapshot."""
    with Repository.open(env.repo) as repository:
        files = SnapshotFiles(repository.reader(), repository.snapshot(repository.resolve(snapshot)).root)
        top = os.fsencode(directory)
        found = files.children(top)
        return {
            name: b"".join(files.pieces(top + b"/" + name, file)) if file.entry.kind == "f" else b""
            for name, file in found.items()
        }


def _start(env: LiveEnv, name: str = "first", **spec: object) -> None:
    env.python(name, WRITER, cwd=str(env.work), **{"share": (str(env.work),), **spec})
    _ask(env, name)


# -- while it runs, and in copies -------------------------------------------------------------------------------------


@live
def test_it_writes_into_the_folder_itself_and_a_fork_into_a_copy_of_what_it_was(live_env: LiveEnv) -> None:
    work = live_env.work
    _start(live_env)
    assert (work / "last").read_text() == "1"
    (work / "of the host").write_text("then")
    assert _inside(live_env, "first", "of the host") == "then"
    assert live_env.exec("first", "sh", "-c", "echo private > /srv/ijfs-private") == 0
    saved = live_env.save("first").snapshot
    assert _saved(live_env, saved, work) == {b"last": b"1", b"log": b"1\n", b"of the host": b"then"}
    (work / "of the host").write_text("now")
    (work / "new").write_text("new")
    live_env.restore(saved, "second")
    _ask(live_env, "second")
    assert (_inside(live_env, "second", "log"), (work / "log").read_text()) == ("1\n2\n", "1\n")
    assert _inside(live_env, "second", "of the host") == "then"
    assert not (_root(live_env, "second") / str(work / "new")[1:]).exists()
    _ask(live_env, "first")
    assert (work / "last").read_text() == "2", "the original is in the folder still"
    assert _saved(live_env, live_env.save("first").snapshot, work)[b"of the host"] == b"now"
    grandchild = live_env.save("second").snapshot
    live_env.restore(grandchild, "third")
    _ask(live_env, "third")
    assert _inside(live_env, "third", "log") == "1\n2\n3\n"
    assert _inside(live_env, "third", "of the host") == "then"
    assert not Path("/srv/ijfs-private").exists()


@live
def test_two_programs_work_in_one_folder_and_a_copy_of_one_sees_neither(live_env: LiveEnv) -> None:
    work = live_env.work
    _start(live_env)
    _start(live_env, "other")
    assert (work / "log").read_text() == "1\n1\n"
    saved = live_env.save("first").snapshot
    live_env.restore(saved, "copy")
    for name in ("other", "copy", "first"):
        _ask(live_env, name)
    assert (work / "log").read_text() == _inside(live_env, "first", "log") == _inside(live_env, "other", "log")
    assert (work / "log").read_text() == "1\n1\n2\n2\n"
    assert _inside(live_env, "copy", "log") == "1\n1\n2\n", "its own line alone after what was saved"
    live_env.restore(saved, "first", replace=True, files="keep")
    _ask(live_env, "first")
    assert _inside(live_env, "other", "log") == "1\n1\n2\n2\n2\n", "going back left what both had written"


@live
def test_a_forks_copy_comes_home_as_a_three_way_merge(live_env: LiveEnv) -> None:
    work = live_env.work
    (work / "deep").mkdir()
    for name in ("removed", "edited", "here", "both", "deep/removed", "gone here"):
        (work / name).write_text(name)
    _start(live_env)
    with Repository.open(live_env.repo) as repository:
        client.fork(live_env.repo, "first", ("second",))
        edit = f"cd {work} && rm removed deep/removed && echo by the fork > edited && cp edited both && echo > new"
        assert live_env.exec("second", "sh", "-c", edit) == 0
        (work / "here").write_text("edited here")
        (work / "both").write_text("edited here, too")
        (work / "gone here").unlink()
        adoption = Adoption(repository, "second")
        steps = adoption.compare(()).steps
        assert {step.path.removeprefix(os.fsencode(work)): (step.change, bool(step.conflict)) for step in steps} == {
            b"/removed": ("removed", False),
            b"/deep/removed": ("removed", False),
            b"/edited": ("changed", False),
            b"/new": ("added", False),
            b"/both": ("changed", True),
        }
        list(adoption.take_home([step for step in steps if not step.conflict]))
        assert sorted(path.name for path in work.iterdir()) == ["both", "deep", "edited", "here", "last", "log", "new"]
        assert Adoption(repository, "first").compare(()).steps == (), "what it shares is at home"
        live_env.save("second")
        assert [s.path for s in Adoption(repository, "second").compare(()).steps] == [os.fsencode(work / "both")]


@live
def test_a_repository_in_the_folder_is_not_stored_in_itself_nor_lost_by_going_back(live_env: LiveEnv) -> None:
    above = live_env.repo.parent
    _start(live_env, share=(str(above),))
    first = live_env.save("first").snapshot
    second = live_env.save("first").snapshot
    for saved in (first, second):
        assert set(_saved(live_env, saved, above)) == {b"work"}
    (above / "later").mkdir()
    live_env.restore(first, "first", replace=True, files="restore")
    assert not (above / "later").exists()
    assert live_env.repo.is_dir()
    _ask(live_env, "first")


# -- going back -------------------------------------------------------------------------------------------------------


@live
def test_going_back_keeps_the_folder_as_it_is_or_puts_it_back_and_keeps_what_was_there(live_env: LiveEnv) -> None:
    work, notes = live_env.work, []

    def on_event(event: Event) -> None:
        notes.extend([event.text] if isinstance(event, Notice) else [])

    (work / "deep").mkdir()
    (work / "deep/old").write_text("old")
    (work / "link").symlink_to("deep/old")
    _start(live_env)
    saved = live_env.save("first").snapshot
    _ask(live_env, "first")
    (work / "new").write_text("new")
    (work / "link").unlink()
    (work / "deep/old").unlink()
    (work / "deep").rmdir()
    with Repository.open(live_env.repo) as repository:
        snapshot = repository.snapshot(repository.resolve(saved))
        assert changed_since(repository, snapshot, "first").files == 6, "log, last, new, link, deep, deep/old"
        assert changed_since(repository, snapshot, "another").files == 0
    live_env.restore(saved, "first", replace=True, on_event=on_event)
    assert (work / "log").read_text() == "1\n2\n", "nothing is overwritten unasked"
    assert (work / "new").read_text() == "new"
    assert any(str(work / "log") in note for note in notes), "what it has open and what changed is said"
    _ask(live_env, "first")
    assert (work / "log").read_text() == "1\n2\n2\n", "it goes on in the file as it is now, its memory as then"
    live_env.restore(saved, "first", replace=True, files="restore", on_event=on_event)
    assert {path.name for path in work.iterdir()} == {"deep", "last", "link", "log"}
    assert ((work / "log").read_text(), (work / "link").read_text()) == ("1\n", "old")
    assert "first.files" in notes[-1]
    assert _saved(live_env, "first.files", work)[b"log"] == b"1\n2\n2\n"
    _ask(live_env, "first")
    assert (work / "log").read_text() == "1\n2\n"
    asked = pexpect.spawn(
        sys.executable, ["-m", "ijfs.cli", "-r", str(live_env.repo), "restore", "--replace", saved], encoding="utf-8"
    )
    asked.expect(r"Go back\?", timeout=patient(30))
    asked.sendline("y")
    asked.expect("keep them as they are now, or restore them as they were", timeout=patient(30))
    asked.sendline("restore")
    asked.expect(pexpect.EOF, timeout=patient(30))
    assert (work / "log").read_text() == "1\n", "somebody at a terminal was asked"


@live
def test_where_going_back_fails_the_folder_is_as_before_and_the_program_runs_on(live_env: LiveEnv) -> None:
    work, large = live_env.work, live_env.work.parent / "large"
    large.mkdir()
    _start(live_env, bind=(str(large),))
    saved = live_env.save("first").snapshot
    _ask(live_env, "first")
    (work / "new").write_text("new")
    large.rename(large.with_name("elsewhere"))
    with pytest.raises(SandboxError, match="is not on this machine"):
        live_env.restore(saved, "first", replace=True, files="restore")
    assert ((work / "log").read_text(), (work / "new").read_text()) == ("1\n2\n", "new")
    _ask(live_env, "first")
    assert (work / "last").read_text() == "3"


@live
def test_a_file_that_it_has_open_and_that_is_gone_is_named(live_env: LiveEnv) -> None:
    _start(live_env)
    saved = live_env.save("first").snapshot
    (live_env.work / "log").rename(live_env.work / "log.1")
    with pytest.raises(ProgramRefusedError, match=r"had .*/log open, which is gone") as refused:
        live_env.restore(saved, "first", replace=True)
    assert "--files restore" in (refused.value.hint or "")
    _ask(live_env, "first")
    live_env.restore(saved, "first", replace=True, files="private")
    _ask(live_env, "first")
    assert (_inside(live_env, "first", "log"), (live_env.work / "log").exists()) == ("1\n2\n", False)


@live
def test_a_folder_that_is_gone_comes_back_as_the_programs_own(live_env: LiveEnv) -> None:
    notes = []
    _start(live_env)
    saved = live_env.save("first", stop=True).snapshot
    moved = live_env.work.rename(live_env.work.with_name("moved"))
    live_env.restore(
        saved,
        "first",
        replace=True,
        on_event=lambda event: notes.extend([event.text] if isinstance(event, Notice) else []),
    )
    assert any("not here any more" in note for note in notes)
    _ask(live_env, "first")
    assert (_inside(live_env, "first", "log"), (moved / "log").read_text()) == ("1\n2\n", "1\n")


LOCKED = """
import fcntl, time
lock = open("lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
open("/tmp/locked", "w").close()
time.sleep(600)
"""


@live
def test_a_lock_that_the_old_program_holds_is_no_reason_to_hang(live_env: LiveEnv) -> None:
    live_env.python("first", LOCKED, cwd=str(live_env.work), share=(str(live_env.work),))
    assert eventually((_root(live_env, "first") / "tmp/locked").exists, 20)
    saved = live_env.save("first").snapshot
    with pytest.raises(ProgramRefusedError, match=r"holds a lock on .*/lock"):
        live_env.restore(saved, "first", replace=True)
    live_env.stop("first")
    live_env.restore(saved, "first", replace=True)
    assert live_env.exec("first", "flock", "-n", str(live_env.work / "lock"), "true") == 1, "the lock is held again"


@live
def test_a_bound_folder_is_in_no_snapshot_and_what_changed_in_it_is_named(live_env: LiveEnv) -> None:
    large, quiet = live_env.work / "large", live_env.work / "quiet"
    for folder in (large, quiet):
        folder.mkdir()
        (folder / "data").write_text("1234")
    script = f"data = open('{large}/data'); import time; time.sleep(600)"
    live_env.python("first", script, share=(str(live_env.work),), bind=(str(large), f"{quiet}:ro"))
    assert live_env.exec("first", "sh", "-c", f"echo 5678 > {large}/more") == 0
    assert (large / "more").read_text() == "5678\n"
    assert live_env.exec("first", "sh", "-c", f"echo > {quiet}/more 2> /dev/null") != 0
    saved = live_env.save("first").snapshot
    assert _saved(live_env, saved, live_env.work) == {}
    live_env.restore(saved, "second")
    assert live_env.exec("second", "sh", "-c", f"echo > {large}/of-the-second") == 0
    assert (large / "of-the-second").exists()
    (large / "data").write_text("12345")
    with pytest.raises(ProgramRefusedError, match="/large/data open, which has 5 bytes and had 4"):
        live_env.restore(saved, "third")
    (large / "data").unlink()
    with pytest.raises(ProgramRefusedError, match=r"/large/data open, which is gone$") as refused:
        live_env.restore(saved, "first", replace=True)
    assert "--bind" in (refused.value.hint or "")
    assert client.is_running(live_env.repo, "first")


@live
def test_a_new_keeper_saves_the_folder_too_and_a_restart_finds_it(live_env: LiveEnv) -> None:
    _start(live_env)
    keeper = read_record(InstancePaths.of(live_env.repo, "first")).keeper
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    assert eventually(lambda: is_gone(keeper.pid), 20)
    (live_env.work / "meanwhile").write_text("new")
    assert _saved(live_env, live_env.save("first").snapshot, live_env.work)[b"meanwhile"] == b"new"
    live_env.stop("first")
    spec = InstanceSpec(name="first", argv=("sh", "-c", "echo again > again; sleep 600"), cwd=str(live_env.work))
    client.start(live_env.repo, spec, again=True)
    assert eventually((live_env.work / "again").exists, 20)
    with program_files(live_env.repo, "first") as files:
        assert files.node(str(live_env.work / "meanwhile")).entry.size == 3


# -- what can be shared -----------------------------------------------------------------------------------------------


def _settled(repo: Path, *share: Path, bind: tuple[str, ...] = ()) -> InstanceSpec:
    return host_folders.settled(InstanceSpec(name="n", argv=("true",), share=tuple(map(str, share)), bind=bind), repo)


def test_folders_are_named_as_the_host_names_them_and_each_once(tmp_path: Path) -> None:
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    spec = _settled(tmp_path / "repo", tmp_path / "link", tmp_path / "real/inner", tmp_path / "real")
    assert spec.share == (str(tmp_path / "real"),)
    spec = _settled(tmp_path / "repo", bind=(f"{tmp_path}/link:ro", f"{tmp_path}/real/inner"))
    assert host_folders.given(spec) == {f"{tmp_path}/real": "readonly", f"{tmp_path}/real/inner": "bind"}


def test_what_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "repo"
    (repo / "live").mkdir(parents=True)
    for path, why in ((Path("/"), "one of its own"), (Path("/proc/self"), "of its own"), (repo / "live", "repository")):
        with pytest.raises(CommandError, match=why):
            _settled(repo, path)
    with pytest.raises(CommandError, match="no folder"):
        _settled(repo, tmp_path / "none")
    with pytest.raises(CommandError, match="only one"):
        _settled(repo, tmp_path, bind=(str(tmp_path),))
    (repo / "pack").write_bytes(bytes(5000))
    monkeypatch.setenv(host_folders.LIMIT, "4K")
    assert _settled(repo, tmp_path).share, "the repository does not count"
    (tmp_path / "large").write_bytes(bytes(5000))
    with pytest.raises(CommandError, match="holds more than") as refused:
        _settled(repo, tmp_path)
    assert "--bind" in (refused.value.hint or "")
    found = host_folders.bearable([str(tmp_path), "/"], repo)
    assert (found.share, found.bind, len(found.notes)) == ((), (str(tmp_path),), 2)


# -- a folder that others change --------------------------------------------------------------------------------------


def test_what_others_change_while_it_is_captured_is_captured_as_one_or_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner/deep").mkdir(parents=True)
    for name in ("stays", "shrinks", "goes", "inner/goes", "inner/deep/goes"):
        (folder / name).write_bytes(b"x" * 10_000)
    layer = WritableLayer(folder, "files/f", "/f", frozenset({"repo", "inner/left-out"}), shared=True)
    walker = LayerWalker([layer], {}, tmp_path / "stage")
    walker.measure()
    arena = Arena(64 << 20)
    walker.read_ahead(arena)
    os.truncate(folder / "shrinks", 100)
    (folder / "goes").unlink()
    (folder / "inner/goes").unlink()
    (folder / "inner/deep").rename(folder / "moved")
    for name in ("repo", "inner/left-out"):
        (folder / name).mkdir()
        (folder / name / "inside").write_bytes(b"never")
    (folder / "new/er").mkdir(parents=True)
    (folder / "new/er/file").write_bytes(b"new")
    found = walker.capture(arena, frozenset())
    sizes = {at: item.entry.size for at, item in found.items.items() if item.entry.kind == "f"}
    assert sizes == {
        "files/f/stays": 10_000,
        "files/f/shrinks": 100,
        "files/f/moved/goes": 10_000,
        "files/f/new/er/file": 3,
    }
    for item in found.items.values():
        if item.entry.kind == "f":
            assert item.source is not None
            assert sum(map(len, item.source)) == item.entry.size  # type: ignore[arg-type]


def test_what_another_volume_shows_in_a_folder_is_left_out_of_it() -> None:
    shared, inner, beside = (Volume(f"v{n}", path) for n, path in enumerate(("/a", "/a/b/c", "/ab")))
    assert host_folders.left_out(shared, [shared, inner, beside], Path("/a/repo")) == {"b/c", "repo"}
    assert host_folders.left_out(beside, [shared, inner, beside], Path("/a/repo")) == frozenset()
