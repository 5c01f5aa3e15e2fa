"""Who gets a name, and what becomes of what others had or are about to have under it: clients at once, clients that are
interrupted or killed, programs that have ended and left files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_env import LiveEnv, command_line
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.client.claim import Claim, claim
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import InstanceExistsError, InstanceExitedError, NotLiveError, UnsavedFilesError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceInfo, InstanceSpec
from ijfs.live.process.keeper_lock import KeeperLock, is_kept
from ijfs.live.sandbox import cleanup
from ijfs_engine import IjfsError, Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

IDLE = "while true; do sleep 0.05; done"


def at_once(*calls: Callable[[], InstanceInfo]) -> list[InstanceInfo | IjfsError]:
    """What came of calls that were made at the same time."""
    gate = threading.Barrier(len(calls))

    def one(call: Callable[[], InstanceInfo]) -> InstanceInfo | IjfsError:
        gate.wait()
        try:
            return call()
        except IjfsError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def snapshots(live_env: LiveEnv) -> int:
    with Repository.open(live_env.repo) as repository:
        return len(repository.snapshots())


def directory(live_env: LiveEnv, name: str) -> Path:
    return live_env.repo / "live" / name


def nothing_of(live_env: LiveEnv, name: str) -> bool:
    """Whether neither a directory nor a process of an instance is left."""
    running = [pid for pid in live_env.processes() if f"/live/{name}" in command_line(pid)]
    return not directory(live_env, name).exists() and not running


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_of_all_who_claim_a_name_at_once_one_has_it(tmp_path: Path) -> None:
    for _ in range(50):
        gate = threading.Barrier(4)

        def one(gate: threading.Barrier = gate) -> Claim | None:
            gate.wait()
            try:
                return claim(tmp_path, "same", wait_s=0.0)
            except InstanceExistsError:
                return None

        with ThreadPoolExecutor(4) as pool:
            had = [found for found in pool.map(lambda _: one(), range(4)) if found is not None]
        assert len(had) == 1
        assert is_kept(had[0].paths)
        had[0].give_up()
        assert not had[0].paths.root.exists()


def test_who_only_looks_whether_a_name_is_taken_keeps_nobody_from_it(tmp_path: Path) -> None:
    paths = InstancePaths.of(tmp_path, "seen")
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            is_kept(paths)

    watching = [threading.Thread(target=look) for _ in range(2)]
    for thread in watching:
        thread.start()
    try:
        for _ in range(50):
            claim(tmp_path, "seen", wait_s=patient(5)).give_up()
    finally:
        over.set()
        for thread in watching:
            thread.join()


def test_the_lock_of_a_directory_that_was_swept_away_is_no_lock(tmp_path: Path) -> None:
    first = claim(tmp_path, "again")
    with first.paths.lock.open("rb") as old:
        cleanup.remove(first.paths)
        first.paths.root.mkdir()
        second = KeeperLock.take(first.paths)
        assert second is not None
        assert os.fstat(second.fileno()).st_ino != os.fstat(old.fileno()).st_ino
    assert first.lock.is_held
    first.lock.close()
    second.close()


# -- clients at once ---------------------------------------------------------------------------------------------------


def test_of_three_starts_of_one_name_one_comes_up_and_the_others_hear_it(live_env: LiveEnv) -> None:
    for _ in range(3):
        found = at_once(*[lambda: live_env.command("same", IDLE)] * 3)
        (up,) = [info for info in found if isinstance(info, InstanceInfo)]
        assert [type(error) for error in found if not isinstance(error, InstanceInfo)] == [InstanceExistsError] * 2
        assert client.describe(live_env.repo, "same").pid == up.pid
        live_env.stop("same", timeout_s=0)


def test_who_replaces_an_instance_that_is_coming_up_waits_for_it(live_env: LiveEnv) -> None:
    live_env.command("from", IDLE)
    snapshot = live_env.save("from").snapshot
    for _ in range(2):
        found = at_once(lambda: live_env.restore(snapshot, "p"), lambda: live_env.restore(snapshot, "p", replace=True))
        up = [info for info in found if isinstance(info, InstanceInfo)]
        assert found[1] in up, "replacing works, whoever was first"
        assert all(isinstance(error, InstanceExistsError) for error in found if error not in up)
        assert client.describe(live_env.repo, "p").status == "running"
        live_env.stop("p", timeout_s=0)


def test_a_fork_whose_name_is_taken_saves_and_makes_nothing(live_env: LiveEnv) -> None:
    live_env.command("source", IDLE)
    live_env.command("taken", IDLE)
    with pytest.raises(InstanceExistsError):
        client.fork(live_env.repo, "source", ["free", "taken"])
    assert snapshots(live_env) == 0
    assert nothing_of(live_env, "free")
    (sibling,) = client.fork(live_env.repo, "source", ["free"])
    assert sibling.name == "free"


def test_a_keeper_that_is_just_being_killed_is_replaced_and_the_command_works(live_env: LiveEnv) -> None:
    info = live_env.command("kept", IDLE)
    for _ in range(4):
        keeper = read_record(InstancePaths.of(live_env.repo, "kept")).keeper
        assert keeper is not None
        os.kill(keeper.pid, signal.SIGKILL)
        with client.connect(live_env.repo, "kept") as connected:
            assert connected.status().pid == info.pid


# -- clients that leave ------------------------------------------------------------------------------------------------

CLIENT = """
import os, signal, sys
from ijfs.live.client import api as client
repo, phase, verb, source = sys.argv[1:]
def at(event):
    if isinstance(event, client.PhaseBegan) and event.name == phase:
        os.kill(os.getpid(), signal.SIGKILL)
if verb == "start":
    client.start(repo, client.InstanceSpec(name="half", argv=("sleep", "1000"), cwd="/"), on_event=at)
elif verb == "fork":
    client.fork(repo, source, ["half", "other-half"], on_event=at)
else:
    client.restore(repo, source, "half", eager=verb == "eager", on_event=at)
"""


@pytest.mark.parametrize(
    ("verb", "phase"),
    [("start", "start"), ("lazy", "files"), ("lazy", "restore"), ("eager", "restore"), ("fork", "images")],
)
def test_what_comes_up_for_a_client_that_was_killed_is_ended(live_env: LiveEnv, verb: str, phase: str) -> None:
    live_env.command("whole", IDLE)
    snapshot = live_env.save("whole").snapshot
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(live_env.repo), phase, verb, snapshot], check=False, timeout=patient(60)
    )
    assert done.returncode == -signal.SIGKILL
    assert eventually(lambda: nothing_of(live_env, "half"))
    assert eventually(lambda: nothing_of(live_env, "other-half"))
    live_env.restore(snapshot, "half")


def ijfs(live_env: LiveEnv, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ijfs.cli", "-r", str(live_env.repo), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_restore_ends_what_comes_up_and_says_so(
    live_env: LiveEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A CRIU that takes its time, so that the restore is under way when the signal comes."""
    live_env.command("whole", IDLE)
    snapshot = live_env.save("whole").snapshot
    slow = tmp_path / "criu"
    slow.write_text(f'#!/bin/sh\n[ "$1" = restore ] && sleep 0.5\nexec {criu_command.find()} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("IJFS_CRIU", str(slow))
    restoring = ijfs(live_env, "restore", snapshot, "--name", "half")
    assert eventually(lambda: (directory(live_env, "half") / "box-1/criu").exists())
    restoring.send_signal(number)
    said, _ = restoring.communicate(timeout=patient(60))
    assert restoring.returncode == 128 + number
    assert "`half` did not come up" in said or "`half` ends as soon as it has come up" in said
    assert eventually(lambda: nothing_of(live_env, "half"))


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("run", "--name", "up", "sleep", "1000"), signal.SIGINT),
        (("kernel", "start", "--name", "up"), signal.SIGTERM),  # which waits for the kernel then
    ],
    ids=["run", "kernel-start"],
)
def test_a_start_that_is_interrupted_when_the_program_runs_says_that_it_does(
    live_env: LiveEnv, words: tuple[str, ...], number: signal.Signals
) -> None:
    starting = ijfs(live_env, *words)
    assert eventually((directory(live_env, "up") / "instance.json").exists)
    starting.send_signal(number)
    said, _ = starting.communicate(timeout=patient(60))
    if client.is_running(live_env.repo, "up"):
        assert "runs" in said
    else:
        assert "`up` did not come up" in said


def test_an_interrupted_restore_in_place_does_not_say_that_the_old_one_stays(
    live_env: LiveEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "criu"
    at_it = tmp_path / "restoring"
    slow.write_text(f'#!/bin/sh\n[ "$1" = restore ] && touch {at_it} && sleep 0.5\nexec {criu_command.find()} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("IJFS_CRIU", str(slow))  # before the program: it is its keeper that goes back
    live_env.command("there", IDLE)
    snapshot = live_env.save("there").snapshot
    restoring = ijfs(live_env, "restore", snapshot, "--name", "there", "--replace")
    assert eventually(at_it.exists)
    restoring.send_signal(signal.SIGINT)
    said, _ = restoring.communicate(timeout=patient(60))
    assert restoring.returncode == 128 + signal.SIGINT
    assert "`there` is still being replaced by the snapshot, or was" in said


# -- programs that have ended ------------------------------------------------------------------------------------------


def ended(live_env: LiveEnv, name: str, script: str) -> None:
    """A program that did this and ended."""
    live_env.command(name, script)
    assert eventually(lambda: client.describe(live_env.repo, name).status == "exited")


@pytest.mark.parametrize("how", ["start", "restore"])
def test_an_ended_program_with_unsaved_files_is_not_replaced_without_a_word(live_env: LiveEnv, how: str) -> None:
    live_env.command("other", IDLE)
    snapshot = live_env.save("other").snapshot
    ended(live_env, "work", "echo precious > /root/result; ln -s result /root/link; echo said")
    log = Path(client.describe(live_env.repo, "work").log)
    ways = {"start": lambda: live_env.command("work", IDLE), "restore": lambda: live_env.restore(snapshot, "work")}
    with pytest.raises(UnsavedFilesError, match="2 files that are in no snapshot are still there: /root/"):
        ways[how]()
    assert (live_env.upper("work") / "root/result").read_text() == "precious\n"
    assert log.read_text() == "said\n"
    spec = InstanceSpec(name="work", argv=("sleep", "1000"), cwd="/")
    assert client.start(live_env.repo, spec, forget=True).status == "running"


CHANGES_BYTES_ALONE = """
import mmap, os, signal
for name in "mapped", "put-back":
    open(f"/root/{name}", "w").write("before")
mapped = mmap.mmap(os.open("/root/mapped", os.O_RDWR), 6)
mapped[:] = b"before"
signal.sigwait([signal.SIGUSR1])
mapped[:] = b"after!"
before = os.stat("/root/put-back")
open("/root/put-back", "w").write("after!")
os.utime("/root/put-back", ns=(before.st_atime_ns, before.st_mtime_ns))
"""


def test_a_file_that_changed_in_nothing_but_its_bytes_is_not_taken_for_saved(live_env: LiveEnv) -> None:
    live_env.python("work", f"import signal; signal.pthread_sigmask(0, [signal.SIGUSR1])\n{CHANGES_BYTES_ALONE}")
    assert eventually(lambda: (live_env.upper("work") / "root/put-back").exists())
    live_env.save("work")
    live_env.exec("work", "pkill", "-USR1", "-f", "put-back")
    assert eventually(lambda: client.describe(live_env.repo, "work").status == "exited")
    with pytest.raises(UnsavedFilesError, match="2 files that are in no snapshot") as caught:
        live_env.command("work", IDLE)
    assert all(f"/root/{name}" in str(caught.value) for name in ("mapped", "put-back"))
    client.save_ended(live_env.repo, "work")
    live_env.command("work", IDLE)


def test_an_ended_program_that_wrote_nothing_of_its_own_makes_room(live_env: LiveEnv) -> None:
    """Output, by-products, what was opened for writing and never written, what it deleted."""
    script = """
    echo said; mkdir -p /root/__pycache__ /root/.cache/x; echo 1 > /root/__pycache__/a.pyc; echo 1 > /root/.cache/x/y
    exec 3<> /etc/hostname; rm -f /etc/issue; mkdir /root/empty
    """
    for _ in range(2):
        ended(live_env, "idle", script)


def test_what_the_program_before_wrote_is_kept(live_env: LiveEnv) -> None:
    live_env.command("other", IDLE)
    snapshot = live_env.save("other").snapshot
    for words in ("first", "second"):
        ended(live_env, "talks", f"echo {words}")
    earlier = InstancePaths.of(live_env.repo, "talks").earlier_log
    assert earlier.read_text() == "first\n"
    live_env.restore(snapshot, "talks", replace=True)
    assert earlier.read_text() == "second\n"
    printed = ijfs(live_env, "logs", "--earlier", "talks").communicate(timeout=patient(60))[0]
    assert printed == "second\n"
    said = ijfs(live_env, "logs", "--earlier", "other").communicate(timeout=patient(60))[0]
    assert "no program was called `other` before this one" in said


def test_what_an_ended_program_left_is_saved_and_can_be_had_from_the_snapshot(live_env: LiveEnv) -> None:
    live_env.command("work", f"echo first > /root/result; {IDLE}", cwd="/root")
    assert eventually(lambda: (live_env.upper("work") / "root/result").exists())
    alive = live_env.save("work").snapshot
    live_env.exec("work", "sh", "-c", "echo second > /root/result; echo more > /root/more")
    live_env.stop("work", timeout_s=0)
    with pytest.raises(UnsavedFilesError):
        live_env.command("work", IDLE)
    result = client.save_ended(live_env.repo, "work", message="what it left")
    assert (result.parent, result.image_bytes) == (alive, 0)
    with Repository.open(live_env.repo) as repository:
        reader, root = repository.reader(), repository.snapshot(bytes.fromhex(result.snapshot)).root
        for name, text in (("result", b"second\n"), ("more", b"more\n")):
            file = reader.open(reader.lookup(root, f"files/root/{name}"))
            assert file.read(0, file.size) == text
        assert {name: ident.hex() for name, ident in repository.refs.branches().items()} == {
            "work": alive,
            "work.ended": result.snapshot,
        }
        assert repository.fsck().clean
    with pytest.raises(NotLiveError, match="no program in it to bring back") as caught:
        live_env.restore(result.snapshot, "back")
    assert alive[:12] in str(caught.value.hint)
    assert eventually(lambda: nothing_of(live_env, "back"))
    with pytest.raises(InstanceExitedError, match="left no file that is not saved"):
        client.save_ended(live_env.repo, "work")
    live_env.command("work", IDLE)
    live_env.restore("work", "back")


def test_files_of_a_restored_program_that_it_did_not_touch_are_saved_ones(live_env: LiveEnv) -> None:
    live_env.command("first", f"echo kept > /root/kept; {IDLE}")
    assert eventually(lambda: (live_env.upper("first") / "root/kept").exists())
    snapshot = live_env.save("first").snapshot
    for _ in range(2):
        live_env.restore(snapshot, "second")
        live_env.stop("second", timeout_s=0)
    live_env.restore(snapshot, "second")
    live_env.exec("second", "sh", "-c", "echo changed > /root/kept")
    live_env.stop("second", timeout_s=0)
    with pytest.raises(UnsavedFilesError, match="1 file that is in no snapshot is still there: /root/kept"):
        live_env.restore(snapshot, "second")
