"""Run a command inside an instance's namespaces; a small program of its own, started by client.exec_command.

    python -m ijfs.live.sandbox.enter REQUEST        (an EnterRequest in JSON)

It takes the environment of the program's first process, so that the command finds what the program finds. Its exit
status is the command's.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from ijfs.live.model.records import Process
from ijfs.live.process import procfs
from ijfs.live.sandbox import namespaces as ns


class EnterRequest(msgspec.Struct, frozen=True):
    """Which instance's first process, what to run, where, with what on top of the environment."""

    program: Process
    argv: list[str]
    cwd: str | None = None
    env: dict[str, str] = {}


def main() -> int:
    """The helper program."""
    request = msgspec.json.decode(sys.argv[1], type=EnterRequest)
    pid = request.program.pid
    try:
        environment = {**environment_of(pid), **request.env}
        cwd = request.cwd or os.readlink(f"/proc/{pid}/cwd")
        _join(request.program)
        return _run(request.argv, cwd, environment)
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


def _run(argv: list[str], cwd: str, environment: dict[str, str]) -> int:
    """Only a child is inside the pid namespace."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # a terminal's ^C is the command's, which decides what becomes of it
    pid = os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, environment)
        except OSError as error:
            print(f"ijfs exec: {argv[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
