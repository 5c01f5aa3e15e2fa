"""`ijfs run -it` and `ijfs attach`, typed at a real terminal: a shell that is saved, forked and gone back with."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import COMMAND, Ijfs
from waiting import patient

from ijfs.live.sandbox import limits

pytestmark = [pytest.mark.root, pytest.mark.criu]

LEAVE = b"\x10\x11"
PROMPT = b"> "


class Typist:
    """A person at a terminal with one command."""

    def __init__(self, *argv: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [*COMMAND, *argv])
        self.resize(30, 100)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        """Type it, and look meanwhile: a terminal takes only so much."""
        while data:
            ready_in, ready_out, _ = select.select([self._fd], [self._fd], [], patient(30))
            if ready_in:
                self.seen += os.read(self._fd, 1 << 16)
            if ready_out:
                data = data[os.write(self._fd, data[:512]) :]

    def sees(self, pattern: bytes) -> re.Match[bytes]:
        """Wait for it; what came before it, and it, are not looked at again."""
        deadline = time.monotonic() + patient(30)
        while (found := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen[-2000:]!r}"
            if select.select([self._fd], [], [], 0.2)[0]:
                self.seen += os.read(self._fd, 1 << 16)
        self.seen = self.seen[found.end() :]
        return found

    def asks(self, line: bytes, pattern: bytes) -> bytes:
        """What a shell answers to a line."""
        self.type(line + b"\r")
        answer = self.sees(pattern)
        self.sees(PROMPT)
        return answer[1]

    def code(self) -> int:
        """How it ends."""
        while True:
            try:
                self.seen += os.read(self._fd, 1 << 16)
            except OSError:  # nobody has the other end any more
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def shell(repo: Path, ijfs: Ijfs) -> Iterator[Typist]:
    """A person at a shell inside."""
    typist = Typist("run", "-it", "--name", "sh", "-e", "PS1=> ", "--", "sh")
    try:
        typist.sees(PROMPT)
        yield typist
    finally:
        ijfs("stop", "--all", "--rm", "-q")


def test_a_shell_is_typed_into_saved_forked_and_gone_back_with(shell: Typist, ijfs: Ijfs) -> None:
    assert shell.asks(b"stty size; tty", rb"(\d+ \d+)\r\n/dev/pts/0") == b"30 100"
    shell.resize(40, 90)
    assert shell.asks(b"sleep 0.1; stty size", rb"\n(40 90)\r") == b"40 90"
    shell.type(b"sleep 1000\r")
    shell.sees(b"sleep 1000\r\n")
    while ijfs("exec", "sh", "--", "pgrep", "-x", "sleep").code != 0:
        pass
    shell.type(b"\x03")
    shell.sees(PROMPT)
    assert shell.asks(b"echo $?; x=saved", rb"\n(\d+)\r") == b"130"

    assert ijfs("save", "sh", "-m", "at a prompt").code == 0  # the one who sits there goes on
    assert shell.asks(b"x=later; echo is $x", rb"\nis (\w+)") == b"later"
    assert ijfs("restore", "sh", "--replace").code == 0
    shell.sees(rb"40 90\r\n")  # its screen, from before
    shell.sees(rb"\n130\r\n> ")
    assert shell.asks(b"echo is $x", rb"\nis (\w+)") == b"saved"
    shell.type(LEAVE)
    assert shell.code() == 0
    assert b"`sh` runs on" in shell.seen

    assert ijfs("fork", "sh", "-n", "1").code == 0
    fork = Typist("attach", "sh-1", "--detach-keys", "ctrl-],q")
    fork.sees(rb"\nis saved\r\n> ")
    assert fork.asks(b"echo fork $x", rb"\nfork (\w+)") == b"saved"
    pasted = b"".join(b"%04d %s\n" % (number, b"0123456789" * 5) for number in range(400))
    fork.type(b"stty -echo; echo silent; cat > /tmp/pasted; stty echo; md5sum < /tmp/pasted\r")
    fork.sees(rb"\nsilent\r\n")  # what is pasted now is echoed no more
    fork.type(pasted + b"\x04")
    assert fork.sees(rb"([0-9a-f]{32})")[1].decode() == hashlib.md5(pasted).hexdigest()
    fork.type(b"exit 7\r")
    assert fork.code() == 7

    ended = ijfs("stop", "sh")  # a shell at a terminal ignores SIGTERM: it is hung up on
    assert ended.code == 0
    assert ijfs("ps", "--json").json["instances"][0]["exit_status"] in (0, 129)


def test_what_ends_at_once_is_shown_and_its_exit_code_is_the_programs(repo: Path, ijfs: Ijfs) -> None:
    typist = Typist("run", "-it", "--rm", "--name", "once", "--", "sh", "-c", "echo said; exit 9")
    assert typist.code() == 9
    assert b"said\r\n" in typist.seen
    assert ijfs("ps", "--json").json["instances"] == []
    ijfs("stop", "--all", "-q")


def test_what_the_kernel_kills_for_want_of_memory_is_told_at_its_terminal(repo: Path, ijfs: Ijfs) -> None:
    if "memory" not in limits.available():
        pytest.skip("this machine gives no control groups")
    hog = ("--name", "hog", "--memory", "30M", "--", sys.executable, "-c", "held = bytearray(100 << 20)")
    typist = Typist("run", "-it", "--rm", *hog)
    assert typist.code() == 137
    assert b"it ran out of its 30 MB of memory" in typist.seen
    ijfs("stop", "--all", "-q")


def test_a_save_says_of_dev_tty_in_a_job_of_a_shell_what_to_do(shell: Typist, ijfs: Ijfs) -> None:
    shell.type(b"sleep 1000\r")
    while ijfs("exec", "sh", "--", "pgrep", "-x", "sleep").code != 0:
        pass
    assert ijfs("doctor", "sh").code == 12
    refused = ijfs("save", "sh")
    assert refused.code == 12
    assert "/dev/tty open while a job of a shell is in the foreground" in refused.err
    assert "ctrl-z" in refused.err
    shell.type(b"\x1a")
    shell.sees(PROMPT)
    assert ijfs("save", "sh").code == 0


def test_who_sits_at_no_terminal_hears_what_to_do(repo: Path, ijfs: Ijfs) -> None:
    assert ijfs("run", "-it", "--", "sh").code == 2
    assert ijfs("run", "-i", "--", "sh").code == 2
    assert ijfs("run", "--rm", "--", "sh").code == 2
    assert ijfs("run", "-dt", "--name", "d", "--", "sh").code == 0
    assert ijfs("run", "--name", "plain", "--", "sleep", "1000").code == 0
    assert Typist("attach", "plain").code() == 2
    for name, code, said in (
        ("d", 2, "`ijfs attach` sits down at a terminal"),
        ("plain", 2, "was started without a terminal"),
        ("nobody", 1, "there is no program `nobody`"),
    ):
        refused = ijfs("attach", name)
        assert (refused.code, said in refused.err, "-d" in refused.err) == (code, True, False)
    ijfs("stop", "--all", "--rm", "-q")
