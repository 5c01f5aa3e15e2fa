"""What goes wrong and is survived: by the program, by the repository, by whoever asks next."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from live_env import MARK, LiveEnv, command_line, is_gone, open_env
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import (
    CommandError,
    CriuError,
    InstanceExistsError,
    InstanceExitedError,
    KeeperError,
    NoInstanceError,
)
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceSpec
from ijfs_engine import IjfsError, Repository, UnknownNameError
from ijfs_engine.errors import LockedError, StorageError

pytestmark = [pytest.mark.root, pytest.mark.criu]

COUNTING = "i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.05; done"

THREADS = """
import threading, time
data = bytes(range(256)) * (1 << 16)
threads = [threading.Thread(target=time.sleep, args=(600,)) for _ in range(8)]
for thread in threads: thread.start()
"""

IO_URING = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(425, 4, ctypes.create_string_buffer(256))
print("io_uring", fd, flush=True)
while True:
    open("/tmp/count", "w").write(str(time.monotonic()))
    time.sleep(0.05)
"""

RUDE = """
import os, socket, time
said = []
for line in b"[]", b"{", b"7", b'{"verb": "hooks", "port": []}', b'{"verb": 7}', b'{"verb": "status"}':
    with socket.create_connection(("127.0.0.1", 4717), timeout=5) as keeper:
        keeper.sendall(line + b"\\n")
        said.append(keeper.makefile().readline())
open("/tmp/said", "w").write("".join(said))
os.rename("/tmp/said", "/tmp/answers")
time.sleep(1000)
"""


def count(live_env: LiveEnv, name: str) -> str:
    return (live_env.upper(name) / "tmp/count").read_text()


def goes_on(live_env: LiveEnv, name: str) -> bool:
    """Whether the program writes on."""
    before = count(live_env, name)
    return eventually(lambda: count(live_env, name) not in ("", before), 5)


def snapshots(live_env: LiveEnv) -> int:
    with Repository.open(live_env.repo) as repository:
        return len(repository.snapshots())


def is_deaf(pid: int) -> bool:
    """Whether a process is a CRIU (not the first process of what it makes) and takes no SIGTERM."""
    with contextlib.suppress(OSError):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        blocked = int(status["SigBlk"], 16) >> signal.SIGTERM - 1 & 1
        return "criu restore" in command_line(pid) and "\t" not in status["NSpid"] and bool(blocked)
    return False


def keeper_pid(live_env: LiveEnv, name: str) -> int:
    keeper = read_record(InstancePaths.of(live_env.repo, name)).keeper
    assert keeper is not None
    return keeper.pid


def test_a_save_that_criu_refuses_says_why_and_the_program_and_its_ports_go_on(live_env: LiveEnv) -> None:
    live_env.python("ring", IO_URING, io_uring=True)
    log = Path(client.describe(live_env.repo, "ring").log)
    assert eventually(lambda: "io_uring" in log.read_text())
    assert "io_uring -1" not in log.read_text()
    with pytest.raises(CriuError) as caught:
        live_env.save("ring")
    assert "io_uring" in str(caught.value)
    assert "CRIU: " in str(caught.value)
    assert "the program runs on" in str(caught.value)
    assert caught.value.hint
    assert goes_on(live_env, "ring")
    assert snapshots(live_env) == 0


def test_io_uring_is_refused_to_programs_unless_they_are_allowed_it(live_env: LiveEnv) -> None:
    live_env.python("ringless", IO_URING)
    log = Path(client.describe(live_env.repo, "ringless").log)
    assert eventually(lambda: "io_uring -1" in log.read_text())
    live_env.save("ringless")


def test_a_save_of_a_program_that_exits_meanwhile_is_exit_code_13(live_env: LiveEnv) -> None:
    live_env.command("short", "sleep 0.5")
    with client.connect(live_env.repo, "short") as keeper:
        assert eventually(lambda: not client.is_running(live_env.repo, "short"))
        with pytest.raises(IjfsError) as caught:
            keeper.save()
    assert caught.value.exit_code == 13
    with pytest.raises(InstanceExitedError) as ended:
        client.connect(live_env.repo, "short")
    assert ended.value.exit_code == 13
    assert snapshots(live_env) == 0


def test_a_program_that_is_killed_in_the_middle_of_its_save_leaves_no_snapshot(live_env: LiveEnv) -> None:
    live_env.python(
        "big", "import time; data = bytearray(400 << 20); print('up', flush=True)\nwhile True: time.sleep(1)"
    )
    info = client.describe(live_env.repo, "big")
    assert eventually(lambda: "up" in Path(info.log).read_text(), 20)
    events: list[client.Event] = []

    def kill_at_dump(event: client.Event) -> None:
        events.append(event)
        if isinstance(event, client.PhaseBegan) and event.name == "dump":
            assert info.pid is not None
            os.kill(info.pid, signal.SIGKILL)

    with (
        client.connect(live_env.repo, "big", on_event=kill_at_dump) as keeper,
        pytest.raises(InstanceExitedError) as caught,
    ):
        keeper.save()
    assert caught.value.exit_code == 13
    assert snapshots(live_env) == 0
    assert eventually(lambda: client.describe(live_env.repo, "big").status == "exited")


def test_the_program_outlives_its_keeper_and_the_next_command_says_so(live_env: LiveEnv) -> None:
    info = live_env.command("orphan", COUNTING, ports=(8000,))
    first = live_env.save("orphan").snapshot
    os.kill(keeper_pid(live_env, "orphan"), signal.SIGKILL)
    assert goes_on(live_env, "orphan")
    notices: list[str] = []
    with client.connect(
        live_env.repo, "orphan", on_event=lambda event: notices.append(getattr(event, "text", ""))
    ) as keeper:
        result = keeper.save("after")
    assert any("a new one took the running program over" in notice for notice in notices)
    assert result.parent == first
    after = client.describe(live_env.repo, "orphan")
    assert (after.pid, after.relay, after.status) == (info.pid, info.relay, "running")
    assert live_env.stop("orphan").status == "exited"
    assert is_gone(info.pid)


def test_ports_that_others_took_while_there_was_no_keeper_move_and_this_is_said(live_env: LiveEnv) -> None:
    info = live_env.command("moved", COUNTING, ports=(8000,))
    os.kill(keeper_pid(live_env, "moved"), signal.SIGKILL)
    assert eventually(lambda: not client.describe(live_env.repo, "moved").keeper_running)
    notices: list[str] = []
    with (
        socket.create_server(("127.0.0.1", info.relay[0].host)),
        client.connect(live_env.repo, "moved", on_event=lambda event: notices.append(getattr(event, "text", ""))),
    ):
        pass
    assert any(f"tcp8000 {info.relay[0].host}" in notice for notice in notices)
    assert client.describe(live_env.repo, "moved").relay[0].host != info.relay[0].host


def test_a_program_cannot_end_its_keeper_by_what_it_sends(live_env: LiveEnv) -> None:
    live_env.python("rude", RUDE)
    keeper = keeper_pid(live_env, "rude")
    answers = live_env.upper("rude") / "tmp/answers"
    assert eventually(answers.exists, 60)
    *refused, status = answers.read_text().splitlines()
    assert len(refused) == 5
    assert all('"error"' in answer for answer in refused)
    assert '"instance": "rude"' in status
    assert keeper_pid(live_env, "rude") == keeper


def test_a_program_that_ended_without_a_keeper_is_shown_as_exited_and_its_name_is_free(live_env: LiveEnv) -> None:
    info = live_env.command("gone", COUNTING)
    os.kill(keeper_pid(live_env, "gone"), signal.SIGKILL)
    assert info.pid is not None
    os.kill(info.pid, signal.SIGKILL)
    assert eventually(lambda: client.describe(live_env.repo, "gone").status == "exited")
    with pytest.raises(InstanceExitedError):
        client.connect(live_env.repo, "gone")
    client.start(live_env.repo, InstanceSpec(name="gone", argv=("sh", "-c", COUNTING), cwd="/"), forget=True)
    assert goes_on(live_env, "gone")


def test_a_keeper_killed_in_the_middle_of_a_save_leaves_the_program_running_and_no_snapshot(live_env: LiveEnv) -> None:
    live_env.python(
        "big", f"data = bytearray(300 << 20)\n{IO_URING.split('fd =')[0]}" + "\n".join(IO_URING.split("\n")[5:])
    )
    assert eventually(lambda: (live_env.upper("big") / "tmp/count").exists(), 20)
    pid = keeper_pid(live_env, "big")

    def kill_at_ingest(event: client.Event) -> None:
        if isinstance(event, client.PhaseBegan) and event.name == "ingest":
            os.kill(pid, signal.SIGKILL)

    with (
        client.connect(live_env.repo, "big", on_event=kill_at_ingest) as keeper,
        pytest.raises(IjfsError, match="broke off; the program runs on"),
    ):
        keeper.save()
    assert goes_on(live_env, "big")
    assert snapshots(live_env) == 0
    live_env.save("big", "again")
    assert snapshots(live_env) == 1


def test_sigterm_to_the_keeper_stops_cleanly(live_env: LiveEnv) -> None:
    info = live_env.command("polite", "trap 'exit 3' TERM; while true; do sleep 0.05; done")
    pid = keeper_pid(live_env, "polite")
    os.kill(pid, signal.SIGTERM)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    ended = client.describe(live_env.repo, "polite")
    assert (ended.status, ended.exit_status) == ("exited", 3)
    assert is_gone(info.pid)


def test_two_saves_at_once_are_made_one_after_the_other(live_env: LiveEnv) -> None:
    live_env.command("twice", COUNTING)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(live_env.save("twice").snapshot)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 2
    with Repository.open(live_env.repo) as repository:
        parents = {snapshot.id.hex(): [p.hex() for p in snapshot.parents] for snapshot in repository.snapshots()}
    first, second = (results[0], results[1]) if parents[results[0]] == [] else (results[1], results[0])
    assert parents[second] == [first]


def test_names_that_are_taken_or_wrong_are_refused_with_a_sentence(live_env: LiveEnv) -> None:
    live_env.command("one", COUNTING)
    with pytest.raises(InstanceExistsError):
        live_env.command("one", COUNTING)
    with pytest.raises(IjfsError, match="cannot be the name of a program"):
        live_env.command("../one", COUNTING)
    with pytest.raises(NoInstanceError):
        client.connect(live_env.repo, "two")
    with pytest.raises(LockedError):
        client.remove(live_env.repo, "one")
    with pytest.raises(UnknownNameError):
        live_env.restore("nothing", "three")
    assert not (live_env.repo / "live" / "three").exists()


def test_nothing_to_start_is_said_before_anything_is_made(live_env: LiveEnv) -> None:
    with pytest.raises(CommandError, match="no command `no-such-program`"):
        client.start(live_env.repo, client.InstanceSpec(name="none", argv=("no-such-program",), cwd="/"))
    with pytest.raises(CommandError, match="does not exist"):
        client.start(live_env.repo, client.InstanceSpec(name="none", argv=("true",), cwd="/no/such/directory"))
    assert not (live_env.repo / "live" / "none").exists()


def test_a_hung_criu_is_ended_and_the_program_runs_on(
    live_env: LiveEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real keeper with a CRIU that stops answering: a script that sleeps instead of dumping."""
    slow = tmp_path / "criu"
    slow.write_text('#!/bin/sh\n[ "$1" = dump ] && exec sleep 1000\nexec true\n')
    slow.chmod(0o755)
    monkeypatch.setenv("IJFS_CRIU", str(slow))
    monkeypatch.setenv("IJFS_CRIU_LIMIT_S", "1")
    live_env.command("patient", COUNTING)
    with pytest.raises(CriuError, match="did not end within 1 s and was killed; the program runs on"):
        live_env.save("patient")
    assert goes_on(live_env, "patient")


def test_a_restore_that_fails_leaves_nothing_behind_and_names_the_file_that_changed(
    live_env: LiveEnv, tmp_path: Path
) -> None:
    data = Path("/var/lib") / f"ijfs-test-{os.getpid()}.dat"
    data.write_bytes(b"x" * 10_000)
    try:
        live_env.python(
            "reader",
            f"import time; file = open({str(data)!r}); file.read(10); print('up', flush=True); time.sleep(1000)",
        )
        assert eventually(lambda: "up" in Path(client.describe(live_env.repo, "reader").log).read_text())
        snapshot = live_env.save("reader").snapshot
        data.write_bytes(b"x" * 9_000)
        with pytest.raises(CriuError) as changed:
            live_env.restore(snapshot, "later")
        assert data.name in str(changed.value)
        assert "not as it was" in str(changed.value)
        assert changed.value.hint
        data.unlink()
        with pytest.raises(CriuError) as gone:
            live_env.restore(snapshot, "later")
        assert data.name in str(gone.value)
        assert "gone" in str(gone.value)
    finally:
        data.unlink(missing_ok=True)
    assert not (live_env.repo / "live" / "later").exists()
    assert [info.name for info in client.list_instances(live_env.repo)] == ["reader"]


def test_a_library_that_was_upgraded_since_the_save_is_named(live_env: LiveEnv) -> None:
    """The same size, another build id: what an upgrade of a package does."""
    original = next(Path("/usr/lib").glob("*-linux-gnu/libz.so.1.*")).resolve()
    library = Path("/var/lib") / f"ijfs-test-{os.getpid()}.so"
    data = original.read_bytes()
    library.write_bytes(data)
    try:
        live_env.python(
            "user", f"import ctypes, time; ctypes.CDLL({str(library)!r}); print('up', flush=True); time.sleep(1000)"
        )
        assert eventually(lambda: "up" in Path(client.describe(live_env.repo, "user").log).read_text())
        snapshot = live_env.save("user").snapshot
        note = data.index(b"GNU\0", data.index(b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"))
        library.unlink()
        library.write_bytes(data[: note + 4] + bytes(20) + data[note + 24 :])
        with pytest.raises(CriuError) as caught:
            live_env.restore(snapshot, "later")
        assert library.name in str(caught.value)
        assert caught.value.hint
    finally:
        library.unlink(missing_ok=True)


def test_going_back_in_place_that_fails_leaves_the_running_program_as_it_is(live_env: LiveEnv) -> None:
    data = Path("/var/lib") / f"ijfs-test-{os.getpid()}.dat"
    data.write_bytes(b"x" * 10_000)
    try:
        script = f"exec 3<{data}; {COUNTING}"
        live_env.command("stays", script)
        assert eventually(lambda: (live_env.upper("stays") / "tmp/count").exists())
        snapshot = live_env.save("stays").snapshot
        data.unlink()
        with pytest.raises(CriuError):
            live_env.restore(snapshot, "stays", replace=True)
    finally:
        data.unlink(missing_ok=True)
    assert goes_on(live_env, "stays")
    assert client.describe(live_env.repo, "stays").snapshot == snapshot


def test_going_back_in_place_that_cannot_be_written_down_leaves_the_running_program_as_it_is(live_env: LiveEnv) -> None:
    pid = live_env.command("stays", COUNTING).pid
    assert eventually(lambda: (live_env.upper("stays") / "tmp/count").exists())
    snapshot = live_env.save("stays").snapshot
    in_the_way = live_env.repo / "live/stays/instance.json.new"
    in_the_way.mkdir()
    with pytest.raises(StorageError):
        live_env.restore(snapshot, "stays", replace=True)
    assert goes_on(live_env, "stays")
    in_the_way.rmdir()
    assert client.describe(live_env.repo, "stays").pid == pid
    live_env.restore(snapshot, "stays", replace=True)
    assert goes_on(live_env, "stays")
    assert eventually(lambda: is_gone(pid))
    assert len(list((live_env.repo / "live/stays").glob("box-*"))) == 1


def test_a_disk_that_is_full_in_the_middle_of_a_save_costs_the_snapshot_only(small_disk: Path) -> None:
    with open_env(small_disk) as live_env:
        live_env.command("full", COUNTING)
        first = live_env.save("full", "before").snapshot
        with client.connect(live_env.repo, "full") as keeper:
            filler = small_disk / "filler"
            filler.write_bytes(os.urandom(1 << 20) * 50)
            live_env.exec("full", "dd", "if=/dev/urandom", "of=/dev/shm/random", "bs=1M", "count=30", "status=none")
            with pytest.raises(StorageError) as caught:
                keeper.save("too much")
            assert "space" in str(caught.value)
            assert goes_on(live_env, "full")
            with Repository.open(live_env.repo) as repository:
                assert [snapshot.id.hex() for snapshot in repository.snapshots()] == [first]
                assert repository.fsck().clean
            filler.unlink()
            live_env.exec("full", "rm", "/dev/shm/random")
            assert keeper.save("room again").parent == first


def test_the_mark_that_finds_leaks_reaches_the_sandbox(live_env: LiveEnv) -> None:
    """The leak check of these tests is worth nothing unless it sees what a test starts."""
    info = live_env.command("marked", COUNTING)
    assert info.pid in live_env.processes()
    assert keeper_pid(live_env, "marked") in live_env.processes()
    assert os.environ[MARK] == live_env.mark


@pytest.mark.parametrize("phase", ["files", "images", "restore"])
def test_a_keeper_killed_in_the_middle_of_a_restore_leaves_its_name_free_and_nothing_running(
    phase: str, live_env: LiveEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore slowed down at its last step, so that the keeper is killed before it has written anything down."""
    live_env.command("whole", COUNTING)
    snapshot = live_env.save("whole").snapshot
    slow = tmp_path / "criu"
    slow.write_text(f'#!/bin/sh\n[ "$1" = restore ] && sleep 0.3\nexec {criu_command.find()} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("IJFS_CRIU", str(slow))

    def kill_keeper(event: client.Event) -> None:
        if isinstance(event, client.PhaseBegan) and event.name == phase:
            for pid in live_env.processes():
                if command_line(pid).startswith("ijfs-keeper") and "/live/half" in command_line(pid):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(IjfsError, match="broke off"):
        live_env.restore(snapshot, "half", on_event=kill_keeper)
    assert not (live_env.repo / "live" / "half").exists()
    assert eventually(lambda: not [pid for pid in live_env.processes() if "/half" in command_line(pid)])
    monkeypatch.delenv("IJFS_CRIU")
    live_env.restore(snapshot, "half")
    assert goes_on(live_env, "half")


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.02])
def test_nothing_lingers_when_all_of_ijfs_is_killed_in_the_middle_of_a_restore(
    after_s: float, live_env: LiveEnv
) -> None:
    """CRIU waited for the processes it was making, those for pages, and nobody was left to end either."""
    live_env.python("whole", THREADS)
    snapshot = live_env.save("whole").snapshot
    code = f"from ijfs.live.client import api as client; client.restore({str(live_env.repo)!r}, {snapshot!r}, 'half')"
    before = set(live_env.processes())
    asking = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually((live_env.repo / "live/half/box-1/criu/restore.log").exists)
        time.sleep(after_s)
        killed = [pid for pid in set(live_env.processes()) - before if command_line(pid).startswith("ijfs-")]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):  # a pager whose keeper went first
                os.kill(pid, signal.SIGKILL)
    finally:
        asking.kill()
        asking.wait()
    assert eventually(lambda: all(map(is_gone, killed)))
    assert eventually(lambda: not [pid for pid in live_env.processes() if is_deaf(pid)])
    if (live_env.repo / "live/half/instance.json").exists():
        return  # it was through already: an instance without a keeper
    live_env.command("other", COUNTING)
    assert not (live_env.repo / "live/half").exists()
    assert not [pid for pid in live_env.processes() if "/half" in command_line(pid)]


def test_a_keeper_killed_while_it_goes_back_leaves_the_old_program_and_the_way_back_free(live_env: LiveEnv) -> None:
    live_env.command("goes", COUNTING)
    snapshot = live_env.save("goes").snapshot
    first = keeper_pid(live_env, "goes")

    def kill_keeper(event: client.Event) -> None:
        if isinstance(event, client.PhaseBegan) and event.name == "restore":
            os.kill(first, signal.SIGKILL)

    with pytest.raises(KeeperError, match="the program runs on"):
        live_env.restore(snapshot, "goes", replace=True, on_event=kill_keeper)
    assert goes_on(live_env, "goes")
    live_env.restore(snapshot, "goes", replace=True)
    assert goes_on(live_env, "goes")
    assert len(list((live_env.repo / "live/goes").glob("box-*"))) == 1


def test_remains_of_a_keeper_that_nobody_waited_for_are_swept_away_by_the_next_of_that_name(live_env: LiveEnv) -> None:
    remains = live_env.repo / "live" / "remains"
    (remains / "box-1" / "upper").mkdir(parents=True)
    (remains / "keeper.lock").touch()
    live_env.command("remains", COUNTING)
    assert goes_on(live_env, "remains")
