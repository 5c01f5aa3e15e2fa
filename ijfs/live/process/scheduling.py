"""What CRIU leaves out of how threads are scheduled, their processors, io priority and timer slack; and which memory of
a process a core dump gets.

`capture` is called by keeper/save.py right after the thaw, `put_back` by checkpoint/restore.py as soon as the program
runs. (Niceness and scheduling classes CRIU brings back itself.) Kept is only what differs from a thread of a new
program, so that as a rule there is nothing to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ijfs.live.process import procfs, syscalls

# linux/ioprio.h: of one thread; 0 is what every thread has that never asked for anything.
_OF_THREAD, _NO_IO_PRIORITY, _BEST_EFFORT = 1, 0, 2
_NORMAL_SLACK_NS = 50_000

_libc = ctypes.CDLL(None, use_errno=True)


class ThreadSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """One thread, as numbered inside its sandbox. None: as in a new program. `core_filter`: its
    process's (core(5), /proc/PID/coredump_filter)."""

    tid: int
    cpus: tuple[int, ...] | None = None
    io_priority: int | None = None
    slack_ns: int | None = None
    core_filter: str | None = None


def capture(pid: int) -> tuple[ThreadSchedule, ...]:
    """Of every thread in the pid namespace of `pid` what differs from this process's."""
    normal, core_filter = os.sched_getaffinity(0), _core_filter(os.getpid())
    return tuple(found for tid in _threads(pid) if (found := _of_thread(tid, normal, core_filter)) is not None)


def put_back(pid: int, schedules: tuple[ThreadSchedule, ...]) -> None:
    """Give threads in the pid namespace of `pid` theirs again. Processors that this machine lacks are left out; a
    thread that would have none runs on all."""
    if not schedules:
        return
    wanted = {schedule.tid: schedule for schedule in schedules}
    for tid in _threads(pid):
        schedule = wanted.get(_inside(tid))
        if schedule is not None:
            _apply(tid, schedule)


def _of_thread(tid: int, normal: set[int], normal_filter: str) -> ThreadSchedule | None:
    with contextlib.suppress(OSError, ValueError):  # it may end any moment
        cpus = os.sched_getaffinity(tid)
        priority = _io_priority(tid)
        slack = int(Path(f"/proc/{tid}/timerslack_ns").read_text())
        core_filter = _core_filter(tid)
        if (cpus, priority, slack, core_filter) != (normal, _NO_IO_PRIORITY, _NORMAL_SLACK_NS, normal_filter):
            return ThreadSchedule(
                tid=_inside(tid),
                cpus=tuple(sorted(cpus)) if cpus != normal else None,
                io_priority=priority if priority != _NO_IO_PRIORITY else None,
                slack_ns=slack if slack not in (_NORMAL_SLACK_NS, 0) else None,
                core_filter=core_filter if core_filter != normal_filter else None,
            )
    return None


def _apply(tid: int, schedule: ThreadSchedule) -> None:
    with contextlib.suppress(OSError):
        there = set(schedule.cpus or ()) & os.sched_getaffinity(0)
        if there:
            os.sched_setaffinity(tid, there)
    if schedule.io_priority is not None:
        _libc.syscall(syscalls.number("ioprio_set"), _OF_THREAD, tid, schedule.io_priority)
    if schedule.slack_ns is not None:
        with contextlib.suppress(OSError):
            Path(f"/proc/{tid}/timerslack_ns").write_text(str(schedule.slack_ns))
    if schedule.core_filter is not None:
        with contextlib.suppress(OSError):
            Path(f"/proc/{tid}/coredump_filter").write_text(f"0x{schedule.core_filter}")


def _core_filter(pid: int) -> str:
    return Path(f"/proc/{pid}/coredump_filter").read_text().strip()


def _io_priority(tid: int) -> int:
    found = int(_libc.syscall(syscalls.number("ioprio_get"), _OF_THREAD, tid))
    # Of a thread that asked for nothing, some kernels tell what its niceness gives it: best effort, one of 8 levels.
    of_niceness = _BEST_EFFORT << 13 | (os.getpriority(os.PRIO_PROCESS, tid) + 20) // 5
    return _NO_IO_PRIORITY if found < 0 or found >> 13 == 0 or found == of_niceness else found


def _threads(pid: int) -> Iterator[int]:
    for member in procfs.processes_in("pid", procfs.namespace_id(pid, "pid")):
        with contextlib.suppress(OSError):
            yield from map(int, os.listdir(f"/proc/{member}/task"))


def _inside(tid: int) -> int:
    """A thread's number in its own pid namespace; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return procfs.inner_pid(tid)
    return 0
