"""What in a running program keeps CRIU from saving it, or makes it come back not quite the same; only by looking.

`of_program` and `of_process` return results (ijfs.live.checks.result): the command line prints them (`ijfs doctor
NAME`), a save that CRIU refused quotes them. Each is known from a dump or restore that failed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ijfs.live.checks import nested
from ijfs.live.checks.result import CheckResult
from ijfs.live.process import descriptors, procfs

_IO_URING = (
    "start it without (ijfs refuses io_uring to programs it starts, unless asked for; UV_USE_IO_URING=0 for libuv)"
)

# Links of /proc/PID/fd that CRIU 4.x has no image for.
_UNSUPPORTED = {
    "anon_inode:[io_uring]": ("io_uring", _IO_URING),
    "anon_inode:[userfaultfd]": ("userfaultfd", "wait until its memory is in (`ijfs ps`), or close it in the program"),
    "anon_inode:[perf_event]": ("perf events", "end the profiler"),
    "anon_inode:bpf-prog": ("BPF programs", "unload them in the program"),
    "anon_inode:kvm-vm": ("virtual machines (KVM)", "a virtual machine cannot be saved from outside"),
}

# The GPU layer takes care of these. By name: some have a major number that the kernel chose when the driver was loaded.
_GPU_FILES = "/dev/nvidia"

SQLITE_MAGIC = b"SQLite format 3\0"


def of_program(pid: int) -> list[CheckResult]:
    """What is found in every process of the pid namespace of `pid`; in `pid` alone where that is the host's own."""
    inode = procfs.namespace_id(pid, "pid")
    if inode == procfs.namespace_id("self", "pid"):
        return of_process(pid)
    found = [result for member in procfs.processes_in("pid", inode) for result in of_process(member)]
    return [*found, *nested.of_program(pid)]


def traced(pid: int) -> list[CheckResult]:
    """A refusal for each process of the program of `pid` that a debugger or tracer holds: CRIU could not stop it."""
    return [result for member in (pid, *procfs.descendants(pid)) for result in _tracer(member)]


def of_process(pid: int) -> list[CheckResult]:
    """Verdicts on one process; an empty list when nothing is known against saving it."""
    try:
        return [*_open_files(pid), *_tracer(pid), *_state(pid)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _open_files(pid: int) -> Iterator[CheckResult]:
    for number in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        if link in _UNSUPPORTED:
            what, remedy = _UNSUPPORTED[link]
            evidence = f"process {pid} ({_name(pid)}) has {what} open (file descriptor {number})"
            yield CheckResult(check=what, outcome="refuse", evidence=evidence, remedy=remedy)
        elif link.startswith("/dev/") and not link.startswith(_GPU_FILES) and _is_strange_device(pid, number):
            evidence = f"process {pid} ({_name(pid)}) has the device {link} open"
            yield CheckResult(check="device", outcome="warn", evidence=evidence, remedy="close it before the save")
        elif link.startswith("/") and _is_sqlite(pid, number):
            yield CheckResult(
                check="sqlite",
                outcome="warn",
                evidence=f"process {pid} ({_name(pid)}) has the SQLite database {link} open",
                remedy="after a restore, writes through this connection fail with `attempt to write a readonly "
                "database` (the file's inode number is another one): open a new connection there",
            )


def _is_strange_device(pid: int, number: str) -> bool:
    """A character device other than memory devices and terminals."""
    try:
        status = os.stat(f"/proc/{pid}/fd/{number}")
    except OSError:
        return False
    return bool(status.st_rdev) and os.major(status.st_rdev) not in (1, 2, 3, 4, 5, *range(128, 144))


def _is_sqlite(pid: int, number: str) -> bool:
    """By the program's own descriptor, whose position does not move: to open the file would break a lease on it."""
    try:
        if not Path(f"/proc/{pid}/fd/{number}").is_file():
            return False
        fd = descriptors.borrowed(pid, int(number))
        try:
            return os.pread(fd, len(SQLITE_MAGIC), 0) == SQLITE_MAGIC
        finally:
            os.close(fd)
    except OSError:
        return False


def _tracer(pid: int) -> list[CheckResult]:
    tracer = _status(pid).get("TracerPid", "0").strip()
    if tracer == "0":
        return []
    by = procfs.name_of(int(tracer))
    evidence = f"process {pid} ({procfs.name_of(pid)}) is being traced by process {tracer} ({by})"
    return [CheckResult(check="tracer", outcome="refuse", evidence=evidence, remedy="detach the debugger or strace")]


def _status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; none of a process that is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)
    return {}


def _state(pid: int) -> Iterable[CheckResult]:
    status = _status(pid)
    if procfs.state(pid) == "D":
        evidence = f"process {pid} ({_name(pid)}) waits in the operating system and cannot be frozen"
        yield CheckResult(
            check="uninterruptible", outcome="warn", evidence=evidence, remedy="look at the disk it waits for"
        )
    if int(status.get("Threads", "1")) > 5000:
        evidence = f"process {pid} ({_name(pid)}) has {status['Threads'].strip()} threads"
        yield CheckResult(
            check="threads", outcome="warn", evidence=evidence, remedy="the pause of a save grows with them"
        )


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
