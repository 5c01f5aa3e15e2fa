"""Run a command inside an instance's namespaces; a small program of its own, started by client.api (`exec_line`).

    python -m ijfs.live.sandbox.enter REQUEST        (an EnterRequest in JSON)

It takes the environment of the program's first process, so that the command finds what the program finds. Its exit
status is the command's. A command that leads a session of its own gets SIGTERM, SIGINT and SIGHUP handed on to its
process group; SIGUSR1 means SIGKILL, and so does the death of this program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec

from ijfs.live.model.records import Process
from ijfs.live.process import procfs
from ijfs.live.sandbox import namespaces as ns

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

HANDED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGKILL,
}
"""What this program gets, and what the command's process group gets for it."""


class EnterRequest(msgspec.Struct, frozen=True):
    """Which instance's first process, what to run, where, with what on top of the environment; whether the command
    leads a session of its own."""

    program: Process
    argv: list[str]
    cwd: str | None = None
    env: dict[str, str] = {}
    session: bool = False


def main() -> int:
    """The helper program."""
    request = msgspec.json.decode(sys.argv[1], type=EnterRequest)
    pid = request.program.pid
    try:
        environment = {**environment_of(pid), **request.env}
        cwd = request.cwd or os.readlink(f"/proc/{pid}/cwd")
        _join(request.program)
        return _run(request.argv, cwd, environment, session=request.session)
    except OSError as error:
        print(f"ijfs exec: {error.filename or request.argv[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {os.fsdecode(name): os.fsdecode(value) for name, found, value in (p.partition(b"=") for p in pairs) if found}


def _join(program: Process) -> None:
    """Enter the namespaces of exactly this process; its successor with the same pid is somebody else's."""
    fds = [ns.open_namespace(program.pid, kind) for kind in ("net", "ipc", "uts", "pid", "mnt")]
    if not procfs.is_alive(program):
        raise ProcessLookupError(3, "the program has ended")
    for fd in fds:
        ns.setns(fd)
        os.close(fd)


def _run(argv: list[str], cwd: str, environment: dict[str, str], *, session: bool) -> int:
    """Only a child is inside the pid namespace."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # a terminal's ^C is the command's, which decides what becomes of it
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    pid = os.fork()
    if pid == 0:
        try:
            if session:
                os.setsid()
                _die_with_parent()
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, environment)
        except OSError as error:
            print(f"ijfs exec: {argv[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    if session:
        _hand_signals_on(pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _hand_signals_on(group: int) -> None:
    """To the command's process group, for as long as it is there: this process has not waited for its leader yet."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, HANDED_ON[signal.Signals(number)])

    for number in HANDED_ON:
        signal.signal(number, hand_on)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    sys.exit(main())
