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
from ijfs.live.errors import CriuError
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
    assert procfs.state(child) == "T"
    with pytest.raises(CriuError) if beside else contextlib.nullcontext():
        live_env.save("stopping")
    time.sleep(0.1)
    assert procfs.state(child) == "T"


def test_what_criu_loads_needs_no_c_library_and_stands_where_criu_finds_it() -> None:
    """CRIU may have a C library of its own, older or newer than this one."""
    text = subprocess.run(
        ["readelf", "-d", criu_command.RESTART_CALLS], capture_output=True, text=True, check=True
    ).stdout
    assert "(SYMTAB)" in text
    assert "(NEEDED)" not in text
