"""What keeps a program from being saved is seen by only looking: each thing in a real process, without any sandbox."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ijfs.live.checks import blockers, privilege, terminals
from ijfs.live.process import procfs

pytestmark = pytest.mark.root

PREAMBLE = "import ctypes, mmap, os, sys, time; libc = ctypes.CDLL(None, use_errno=True)\n"
AT_END = "\nprint('there', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def process(code: str, *before: str) -> Iterator[int]:
    """A process that has done this, by its pid; skips where this kernel has no such thing (it prints `no`)."""
    command = [*before, sys.executable, "-c", PREAMBLE + code + AT_END]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        assert made.stdin is not None
        try:
            if made.stdout.readline().strip() == "no":
                pytest.skip("this kernel has no such thing")
            yield made.pid
        finally:
            made.stdin.close()


def refusals(pid: int) -> list[str]:
    return [found.evidence for found in blockers.of_process(pid) if found.outcome == "refuse"]


def test_a_process_that_has_nothing_of_it_is_not_refused() -> None:
    with process(
        "import select, socket; kept = select.epoll(), socket.socketpair(), os.pidfd_open(os.getpid())"
    ) as pid:
        assert refusals(pid) == []


def test_a_message_queue_is_named() -> None:
    code = """
queue = libc.mq_open(b"/ijfs-test", os.O_CREAT | os.O_RDWR, 0o600, None)
if queue < 0: print("no", flush=True); sys.exit()
libc.mq_unlink(b"/ijfs-test")
"""
    with process(code) as pid:
        assert ["POSIX message queue /ijfs-test" in text for text in refusals(pid)] == [True]


@pytest.mark.parametrize("kept", ["descriptor", "mapping"])
def test_secret_memory_is_named_open_or_mapped(kept: str) -> None:
    code = f"""
fd = libc.syscall(447, 0)
if fd < 0: print("no", flush=True); sys.exit()
os.ftruncate(fd, 8192)
memory = mmap.mmap(fd, 8192)
os.close(fd) if {kept == "mapping"} else None
"""
    with process(code) as pid:
        assert refusals(pid)
        assert all("secret memory" in text for text in refusals(pid))


def test_a_kind_of_descriptor_that_criu_has_no_image_for_is_named() -> None:
    code = """
fd = libc.syscall(444, (ctypes.c_uint64 * 1)(1), 8, 0)  # landlock_create_ruleset
if fd < 0: print("no", flush=True); sys.exit()
"""
    with process(code) as pid:
        assert ["landlock" in text for text in refusals(pid)] == [True]


def test_a_deleted_file_that_is_too_large_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import tempfile; file = tempfile.TemporaryFile(); file.write(b'x' * (8 << 20)); file.flush()"
    with process(code) as pid:
        assert refusals(pid) == []
        monkeypatch.setattr(blockers, "_LARGEST_DELETED", 4 << 20)
        assert ["a deleted file of 8 MiB" in text for text in refusals(pid)] == [True]


@pytest.mark.parametrize("may", [True, False])
def test_a_process_of_another_user_needs_a_capability(monkeypatch: pytest.MonkeyPatch, may: bool) -> None:
    monkeypatch.setattr(privilege, "may_save_other_users", lambda: may)
    with process("os.setgroups([]); os.setgid(1000); os.setuid(1000)") as pid:
        assert ["CAP_SYS_RESOURCE" in text for text in refusals(pid)] == ([] if may else [True])


def test_a_file_that_is_mounted_on_one_of_dev_is_warned_of() -> None:
    code = "assert libc.mount(b'none', b'/mnt', b'tmpfs', 0, None) == 0; open('/mnt/file', 'w').close()\n"
    code += "assert libc.mount(b'/mnt/file', b'/dev/full', None, 4096, None) == 0"
    with process(code, "unshare", "-m") as pid:
        found = list(blockers._mounts(pid))
        assert [result.outcome for result in found] == ["warn"]
        assert "/dev/full" in found[0].evidence


def test_more_pipes_than_criu_has_room_for_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockers, "_MOST_PIPES", 30)
    with process("kept = [os.pipe() for _ in range(40)]") as pid:
        assert [result.outcome for result in blockers._pipes([pid])] == ["warn"]


AT_A_TERMINAL = """
import pty, signal
pid, master = pty.fork()
if pid == 0:
    {first}
    if os.fork():
        time.sleep(1000)
    {second}
    os.write(1, b"ready")
    time.sleep(1000)
while b"ready" not in os.read(master, 1000):
    pass
"""


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ("pass", "pass", []),
        ("kept = open('/dev/tty')", "also = open('/dev/tty')", []),
        ("pass", "kept = open('/dev/tty')", ["first program at its terminal has not"]),
        (
            "kept = open('/dev/tty')",
            "signal.signal(signal.SIGTTOU, signal.SIG_IGN); os.setpgid(0, 0); os.tcsetpgrp(0, os.getpid())",
            ["while a job of a shell is in the foreground"],
        ),
    ],
)
def test_a_terminal_that_criu_cannot_tell_whose_it_is_is_named(first: str, second: str, refused: list[str]) -> None:
    with process(AT_A_TERMINAL.format(first=first, second=second)) as pid:
        below = procfs.descendants(pid)
        found = list(terminals.of_program(pid, [pid, *below]))
        for child in below:
            os.kill(child, signal.SIGKILL)
    assert [result.outcome for result in found] == ["refuse"] * len(refused)
    assert all(text in result.evidence for text, result in zip(refused, found, strict=True))
