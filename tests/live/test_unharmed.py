"""A save, and a refused one, leaves the program as it was; so do its copies go on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from live_env import LiveEnv, command_line
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import CriuError, ProgramRefusedError
from ijfs.live.model.records import InstanceSpec
from ijfs.live.process import procfs

pytestmark = [pytest.mark.root, pytest.mark.criu]

SECONDS = 4
ENDS = {
    **dict.fromkeys(("poll", "ppoll", "nanosleep", "clock_nanosleep", "clock_nanosleep-absolute"), 0),
    **dict.fromkeys(("epoll_wait", "select"), 0),
    "futex": errno.ETIMEDOUT,
    **dict.fromkeys(("semtimedop", "recvmmsg", "recv", "sigtimedwait"), errno.EAGAIN),
}
"""The error number with which each call ends when its time is over."""


@pytest.fixture
def waits(live_env: LiveEnv) -> Path:
    """The program of waits.c."""
    program = live_env.work / "waits"
    source = Path(__file__).with_name("waits.c")
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, source], check=True)
    return program


def start(live_env: LiveEnv, name: str, *argv: str, **spec: bool) -> None:
    client.start(live_env.repo, InstanceSpec(name=name, argv=argv, cwd=str(live_env.work), **spec))
    assert eventually(lambda: "waiting" in said(live_env, name))


def program_of(live_env: LiveEnv) -> int:
    """The pid of the only instance's program."""
    (program,) = [pid for pid in live_env.processes() if os.readlink(f"/proc/{pid}/exe").endswith("/waits")]
    return program


def said(live_env: LiveEnv, name: str) -> str:
    return Path(client.describe(live_env.repo, name).log).read_text()


def ends(live_env: LiveEnv, name: str) -> dict[str, tuple[int, float]]:
    """How each call of a program ended so far: its error number, and after how many seconds."""
    words = [line.split() for line in said(live_env, name).splitlines() if line != "waiting"]
    return {name: (int(error) if int(result) < 0 else 0, float(took)) for name, result, error, took in words}


def assert_all_ended_in_time(live_env: LiveEnv, name: str) -> None:
    assert eventually(lambda: len(ends(live_env, name)) >= len(ENDS), SECONDS + 10)
    found = ends(live_env, name)
    assert {call: error for call, (error, _) in found.items()} == ENDS, name
    early = {call: took for call, (_, took) in found.items() if took < SECONDS - 0.01}
    assert not early, f"{name}: {early}"
    assert max(took for _, took in found.values()) < SECONDS + patient(5)


def test_no_timed_system_call_sees_a_save_in_the_original_or_in_any_copy(live_env: LiveEnv, waits: Path) -> None:
    start(live_env, "first", str(waits), str(SECONDS))
    saved = [live_env.save("first"), live_env.save("first")]
    assert [result.warnings for result in saved] == [(), ()]
    snapshot = saved[1].snapshot
    live_env.restore(snapshot, "lazy")
    live_env.restore(snapshot, "eager", eager=True)
    live_env.restore(snapshot, "back")
    live_env.restore(snapshot, "back", replace=True)
    names = ["first", "lazy", "eager", "back", *(info.name for info in client.fork(live_env.repo, "first"))]
    for name in names:
        assert_all_ended_in_time(live_env, name)


def test_no_timed_system_call_sees_a_save_that_was_refused(live_env: LiveEnv, waits: Path) -> None:
    start(live_env, "refused", str(waits), str(SECONDS), "refused", io_uring=True)
    with pytest.raises(CriuError):
        live_env.save("refused")
    assert_all_ended_in_time(live_env, "refused")


def test_a_signal_after_a_save_still_ends_a_call_that_is_never_restarted(live_env: LiveEnv, waits: Path) -> None:
    start(live_env, "signalled", str(waits), "600")
    live_env.save("signalled")
    program = program_of(live_env)
    assert not ends(live_env, "signalled")
    os.kill(program, signal.SIGUSR2)
    eventually(lambda: ends(live_env, "signalled") == {"main": (errno.EINTR, 0.0)}, 2)
    assert ends(live_env, "signalled") == {"main": (errno.EINTR, 0.0)}, said(live_env, "signalled")


def test_a_signal_in_the_middle_of_a_save_ends_a_call_that_is_never_restarted(live_env: LiveEnv, waits: Path) -> None:
    """CRIU alone would begin `pause` again after the handler, to wait for a second signal."""
    start(live_env, "signalled", str(waits), "600", "pausing")
    program = program_of(live_env)
    saving = threading.Thread(target=live_env.save, args=("signalled",))
    saving.start()
    while "TracerPid:\t0\n" in Path(f"/proc/{program}/status").read_text():
        assert saving.is_alive()
    os.kill(program, signal.SIGUSR2)
    saving.join()
    assert eventually(lambda: ends(live_env, "signalled") == {"main": (errno.EINTR, 0.0)})


def test_a_save_says_which_calls_end_early_where_that_cannot_be_helped(
    live_env: LiveEnv, waits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was interrupted once before, by a stop, goes on under another number; what it was is not known."""
    start(live_env, "stopped", str(waits), "600")
    program = program_of(live_env)
    os.kill(program, signal.SIGSTOP)
    os.kill(program, signal.SIGCONT)
    (warning,) = live_env.save("stopped").warnings
    assert f"waits (process {program})" in warning
    assert "EINTR" in warning


STOPPED = """
import os, signal, subprocess, time
child = subprocess.Popen(["sleep", "600"])
os.kill(child.pid, signal.SIGSTOP)
{beside}
print("waiting", flush=True)
time.sleep(600)
"""
RING = "import ctypes; ring = ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(256))"


@pytest.mark.parametrize("beside", ["", RING], ids=["saved", "refused"])
def test_what_the_user_has_stopped_stays_stopped(beside: str, live_env: LiveEnv) -> None:
    start(live_env, "stopping", sys.executable, "-c", STOPPED.format(beside=beside), io_uring=True)
    (child,) = [pid for pid in live_env.processes() if command_line(pid).startswith("sleep")]
    assert eventually(lambda: procfs.state(child) == "T"), "a signal takes its moment"
    with pytest.raises(CriuError) if beside else contextlib.nullcontext():
        live_env.save("stopping")
    time.sleep(0.1)
    assert procfs.state(child) == "T"


@pytest.mark.parametrize("library", [criu_command.RESTART_CALLS, criu_command.RECORD_LOCKS])
def test_what_criu_loads_needs_no_c_library_and_stands_where_criu_finds_it(library: Path) -> None:
    """CRIU may have a C library of its own, older or newer than this one."""
    text = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "(SYMTAB)" in text
    assert "(NEEDED)" not in text


LEASES = """
import fcntl, os, signal, time
files = []
for path in "/root/leased", "/dev/shm/leased":
    with open(path, "w") as file: file.write("leased bytes")
    file = os.open(path, os.O_RDWR)
    os.lseek(file, 3, os.SEEK_SET)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    files.append(file)
signal.signal(signal.SIGIO, lambda *_: print("broken", flush=True))
print("waiting", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.02)
leased = [fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_WRLCK for file in files]
at = [os.lseek(file, 0, os.SEEK_CUR) for file in files]
print([*zip(leased, at, [os.pread(file, 99, 0) for file in files])], flush=True)
while True: time.sleep(1)
"""


def test_a_save_breaks_no_write_lease_and_has_the_files_bytes(live_env: LiveEnv) -> None:
    start(live_env, "holder", sys.executable, "-c", LEASES)
    result = live_env.save("holder")
    assert result.frozen_s < patient(20), "a lease that is broken takes the kernel 45 s"
    live_env.restore(result.snapshot, "copy")
    as_before = str([(True, 3, b"leased bytes")] * 2)
    for name in "holder", "copy":
        live_env.exec(name, "touch", "/tmp/go")
        assert eventually(lambda name=name: as_before in said(live_env, name)), said(live_env, name)
        assert "broken" not in said(live_env, name)
    assert (live_env.upper("copy") / "root/leased").read_text() == "leased bytes"


BACKLOG = """
import os, socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
waiting = socket.create_connection(server.getsockname())
waiting.sendall(b"hello")
print("waiting", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.01)
accepted, _ = server.accept()
print(accepted.recv(9), flush=True)
while True: time.sleep(1)
"""


def test_a_connection_that_is_never_accepted_refuses_the_save_and_waits_on(live_env: LiveEnv) -> None:
    start(live_env, "server", sys.executable, "-c", BACKLOG)
    with pytest.raises(ProgramRefusedError, match="had not been accepted, at any of several tries") as caught:
        live_env.save("server")
    assert caught.value.exit_code == 12
    live_env.exec("server", "touch", "/tmp/go")
    assert eventually(lambda: "b'hello'" in said(live_env, "server"))
    live_env.save("server")


SEEN_STOPPED = """
import threading
import ijfs
asked = threading.Event()
ijfs.before_save(asked.set)
print("waiting", flush=True)
asked.wait()
last = time.monotonic()
while (now := time.monotonic()) - last < 0.005: last = now
"""


def test_a_connection_that_is_accepted_a_little_later_only_delays_the_save(live_env: LiveEnv) -> None:
    """The server accepts when time has passed without it: it was stopped for a try (or had no processor before)."""
    connect, _, accept = BACKLOG.partition('print("waiting", flush=True)')
    start(live_env, "server", sys.executable, "-c", connect + SEEN_STOPPED + accept.partition("time.sleep(0.01)")[2])
    result = live_env.save("server")
    live_env.restore(result.snapshot, "copy")
    for name in "server", "copy":
        assert eventually(lambda name=name: "b'hello'" in said(live_env, name))


TRACED = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
child = os.fork()
if child == 0:
    while True: time.sleep(0.01)
assert libc.ptrace(0x4206, child, None, None) == 0  # PTRACE_SEIZE
print("waiting", child, flush=True)
while True: time.sleep(1)
"""


def test_a_traced_process_refuses_the_save_before_anything_is_touched(live_env: LiveEnv) -> None:
    start(live_env, "traced", sys.executable, "-c", TRACED)
    info = client.describe(live_env.repo, "traced")
    assert info.pid is not None
    before = {pid: status(pid, "TracerPid") for pid in procfs.descendants(info.pid)}
    assert any(tracer != "0" for tracer in before.values())
    with pytest.raises(ProgramRefusedError, match="is being traced by process") as caught:
        live_env.save("traced")
    assert caught.value.exit_code == 12
    assert {pid: status(pid, "TracerPid") for pid in procfs.descendants(info.pid)} == before
    assert not (live_env.repo / "live/traced/box-1/criu/dump.log").exists(), "CRIU was not asked"


def status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))


def test_a_program_that_ends_while_its_snapshot_is_stored_is_told_of_by_the_save(live_env: LiveEnv) -> None:
    """Enough that no compressor makes smaller: storing it takes far longer than to hear that it began."""
    code = "import os, time; data = os.urandom(200 << 20); print('waiting', flush=True); time.sleep(1000)"
    start(live_env, "mortal", sys.executable, "-c", code)
    program = client.describe(live_env.repo, "mortal").pid
    assert program is not None

    def kill_at_ingest(event: client.Event) -> None:
        if isinstance(event, client.PhaseBegan) and event.name == "ingest":
            os.kill(program, signal.SIGKILL)

    with client.connect(live_env.repo, "mortal", on_event=kill_at_ingest) as keeper:
        result = keeper.save()
    assert result.snapshot
    assert any("`mortal` has ended since it was saved, with exit status 137" in said for said in result.warnings)
