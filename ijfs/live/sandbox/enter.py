"""Run a command inside an instance's namespaces; a small program of its own, started by client.api (`exec_line`).

    python -m ijfs.live.sandbox.enter REQUEST        (an EnterRequest in JSON)

It takes the environment of the program's first process, so that the command finds what the program finds. Its exit
status is the command's. A command that leads a session of its own gets SIGTERM, SIGINT and SIGHUP handed on to its
process group; SIGUSR1 means SIGKILL, and so does the death of this program. Where its standard input is a terminal,
that becomes the session's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import termios
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec

from ijfs.live.model.records import Process
from ijfs.live.process import cgroups, procfs
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import rights, seccomp, users
from ijfs.live.sandbox.limits import PARENT, Group
from ijfs.live.sandbox.rights import Rights

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

KILLED = 128 + signal.SIGKILL

OOM_FIRST = "1000"
"""proc(5), /proc/PID/oom_score_adj: of several processes, the kernel chooses this one."""

HANDED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGKILL,
}
"""What this program gets, and what the command's process group gets for it."""


class EnterRequest(msgspec.Struct, frozen=True):
    """Which instance's first process, what to run, where, with what on top of the environment; whether the command
    leads a session of its own, as which of the sandbox's users it runs, and a descriptor that is told its pid."""

    program: Process
    argv: list[str]
    cwd: str | None = None
    env: dict[str, str] = {}
    session: bool = False
    user: str | None = None
    tell: int | None = None


def main() -> int:
    """The helper program."""
    request = msgspec.json.decode(sys.argv[1], type=EnterRequest)
    pid = request.program.pid
    try:
        home = os.readlink(f"/proc/{pid}/cwd")
        environment = environment_of(pid)
        group = Group(tuple(cgroups.groups_below(pid, PARENT)))
        watch, groups = group.watch(), cgroups.opened(group.directories)
        held = rights.of(pid)
        _join(request.program)
        first = watch is not None and bool(watch.limits.memory)
        code = _run(request, home, environment, groups, held, first=first)
        if code == KILLED and watch is not None and (said := watch.said()):
            print(f"ijfs exec: {request.argv[0]}: killed: the program {said}", file=sys.stderr)
        return code
    except OSError as error:
        print(_sentence(error, request.argv[0]), file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def _sentence(error: OSError, command: str) -> str:
    """What is said of an error. One of a search along PATH has, as bytes, the last place that was looked at."""
    return f"ijfs exec: {error.filename if isinstance(error.filename, str) else command}: {error.strerror}"


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


def _run(
    request: EnterRequest, home: str, environment: dict[str, str], groups: list[int], held: Rights, *, first: bool
) -> int:
    """Only a child is inside the pid namespace, in the control groups, and with the rights that
    the program has. `home`: where it begins unless the request
    says where, or its user may not go there. `first`: where memory runs out it ends, and not the program."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # a terminal's ^C is the command's, which decides what becomes of it
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    pid = os.fork()
    if pid == 0:
        argv = request.argv
        try:
            cgroups.join_opened(groups)
            if first:
                Path("/proc/self/oom_score_adj").write_text(OOM_FIRST)
            rights.restrict(held)
            seccomp.restrict(io_uring=True, privileged=not held.no_new_privs)
            if request.session:
                os.setsid()
                _take_terminal()
            if request.user is not None:
                environment |= users.become(request.user)
                home = next((path for path in (home, environment["HOME"]) if os.access(path, os.X_OK)), "/")
            if request.session:
                _die_with_parent()  # after the change of user, which takes it back
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
            os.chdir(request.cwd or home)
            if request.tell is not None:
                os.write(request.tell, str(os.getpid()).encode())
                os.close(request.tell)
            os.execvpe(argv[0], argv, environment | request.env)
        except OSError as error:
            print(_sentence(error, argv[0]), file=sys.stderr, flush=True)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    if request.tell is not None:
        os.close(request.tell)
    if request.session:
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


def _take_terminal() -> None:
    """What a session leader's standard input is, if it is a terminal, becomes that of the session."""
    if os.isatty(0):
        with suppress(OSError):  # the terminal of another session already
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    sys.exit(main())
