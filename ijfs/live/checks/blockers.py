"""What in a running program keeps CRIU from saving it, or makes it come back not quite the same; only by looking.

`of_program` and `of_process` return results (ijfs.live.checks.result): the command line prints them (`ijfs doctor
NAME`), a save that CRIU refused quotes them. Each is known from a dump or restore that failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ijfs.live.checks import nested, privilege, sockets, terminals, unlike
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

# The others of their kind that it knows. Of all else it says "Can't dump file … of that type".
_SUPPORTED = (
    *("eventfd", "eventpoll", "inotify", "fanotify", "signalfd", "timerfd", "pidfd", "bpf-map"),
    *("userfaultfd", "io_uring"),  # refused by name, above
)

_MESSAGE_QUEUES = 0x19800202  # MQUEUE_MAGIC, linux/magic.h
_SECRET_MEMORY = "/secretmem"

# CRIU brings deleted files along up to this size (--ghost-limit, criu/command.py).
_LARGEST_DELETED = 512 << 20

# So many pipes with something in them are more than CRIU has room for (criu/pipes.c).
_MOST_PIPES = 1024

# The GPU layer takes care of these. By name: some have a major number that the kernel chose when the driver was loaded.
_GPU_FILES = "/dev/nvidia"

SQLITE_MAGIC = b"SQLite format 3\0"


def of_program(pid: int) -> list[CheckResult]:
    """What is found in every process of the pid namespace of `pid`; in `pid` alone where that is the host's own."""
    inode = procfs.namespace_id(pid, "pid")
    if inode == procfs.namespace_id("self", "pid"):
        return of_process(pid)
    members = procfs.processes_in("pid", inode)
    found = [result for member in members for result in of_process(member)]
    of_all = (*_mounts(pid), *_pipes(members), *sockets.of_program(pid), *nested.of_program(pid))
    return [*found, *of_all, *terminals.of_program(pid, members), *unlike.of_program(pid, members)]


def traced(pid: int) -> list[CheckResult]:
    """A refusal for each process of the program of `pid` that a debugger or tracer holds: CRIU could not stop it."""
    return [result for member in (pid, *procfs.descendants(pid)) for result in _tracer(member)]


def of_process(pid: int) -> list[CheckResult]:
    """Verdicts on one process; an empty list when nothing is known against saving it."""
    try:
        return [*_open_files(pid), *_memory(pid), *_tracer(pid), *_state(pid)]
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
        elif (kind := _strange_kind(pid, number, link)) is not None:
            evidence = f"process {pid} ({_name(pid)}) has {kind} open (file descriptor {number})"
            yield CheckResult(check="open file", outcome="refuse", evidence=evidence, remedy="close it in the program")
        elif link.startswith("/dev/") and not link.startswith(_GPU_FILES) and _is_strange_device(pid, number):
            evidence = f"process {pid} ({_name(pid)}) has the device {link} open"
            yield CheckResult(check="device", outcome="warn", evidence=evidence, remedy="close it before the save")
        elif link.startswith("/") and _is_sqlite(pid, number) and not _keeps_numbers(pid):
            yield CheckResult(
                check="sqlite",
                outcome="warn",
                evidence=f"process {pid} ({_name(pid)}) has the SQLite database {link} open",
                remedy="after a restore, writes through this connection fail with `attempt to write a readonly "
                "database` (the file's inode number is another one): open a new connection there",
            )


def _keeps_numbers(pid: int) -> bool:
    """Whether files come back with the inode numbers that they had: its sandbox has a disk of its own."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(line.split()[4] == "/" and ",xino=on" in line for line in lines)


def _strange_kind(pid: int, number: str, link: str) -> str | None:
    """What a file is that CRIU has no image for; None for others."""
    if link.startswith("anon_inode:"):
        kind = link.removeprefix("anon_inode:").strip("[]")
        return None if kind in _SUPPORTED else kind
    if link.startswith(_SECRET_MEMORY):
        return "secret memory (memfd_secret)"
    if not link.startswith("/"):
        return None
    path = f"/proc/{pid}/fd/{number}"
    if _filesystem(path) == _MESSAGE_QUEUES:
        return f"the POSIX message queue {link}"
    if link.endswith(" (deleted)") and not link.startswith(("/memfd:", "/dev/")):
        with contextlib.suppress(OSError):
            size = os.stat(path).st_blocks * 512
            return f"a deleted file of {size >> 20} MiB" if size > _LARGEST_DELETED else None
    return None


def _filesystem(path: str) -> int:
    """The magic number of the filesystem that a file is on, 0 where it does not say (statfs(2))."""
    buffer = (ctypes.c_long * 32)()
    return int(buffer[0]) if ctypes.CDLL(None).statfs(os.fsencode(path), buffer) == 0 else 0


def _memory(pid: int) -> Iterator[CheckResult]:
    """Mapped without being open."""
    with contextlib.suppress(OSError):
        if f" {_SECRET_MEMORY}" in Path(f"/proc/{pid}/maps").read_text(errors="replace"):
            evidence = (
                f"process {pid} ({_name(pid)}) has secret memory (memfd_secret), which nobody but itself can read"
            )
            remedy = "none: a program that uses it cannot be saved from outside"
            yield CheckResult(check="memory", outcome="refuse", evidence=evidence, remedy=remedy)


def _mounts(pid: int) -> Iterator[CheckResult]:
    """Files of other filesystems that a program has mounted on files of its /dev. (Directories come back.)"""
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace").splitlines():
        where = line.split()[4]
        if where.startswith("/dev/") and not where.startswith(_GPU_FILES) and _is_strange_file(pid, where):
            evidence = f"the program has a file of another file system mounted on {where}: it cannot be restored"
            yield CheckResult(check="mount", outcome="warn", evidence=evidence, remedy="unmount it")


def _is_strange_file(pid: int, where: str) -> bool:
    with contextlib.suppress(OSError):
        status, own = (os.stat(f"/proc/{pid}/root{path}") for path in (where, "/dev"))
        return not stat.S_ISDIR(status.st_mode) and status.st_dev != own.st_dev
    return False


def _pipes(members: Iterable[int]) -> Iterator[CheckResult]:
    links = {link for pid in members for link in _links(pid) if link.startswith("pipe:")}
    if len(links) > _MOST_PIPES:
        evidence = f"the program has {len(links)} pipes: with something in more than {_MOST_PIPES} it cannot be saved"
        yield CheckResult(check="pipes", outcome="warn", evidence=evidence, remedy="close those it does not need")


def _links(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{number}")


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
    tracer = procfs.tracer(pid)
    if not tracer:
        return []
    by = procfs.name_of(tracer)
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
    owners = {*status.get("Uid", "").split(), *status.get("Gid", "").split()}
    if owners - {"0"} and not privilege.may_save_other_users():
        evidence = f"process {pid} ({_name(pid)}) belongs to another user, and ijfs lacks CAP_SYS_RESOURCE"
        remedy = privilege.how_to_give(["SYS_RESOURCE"]) + "; or run the program as root"
        yield CheckResult(check="user", outcome="refuse", evidence=evidence, remedy=remedy)
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
