"""Programs of which CRIU cannot tell whose terminal their /dev/tty is; only by looking.

Called by blockers.py. CRIU notes of each terminal, and of /dev/tty, one process: the first one, parents before
children, that has it open. Where the two are not the same process it refuses ("ctty inheritance detected"): where the
first program has /dev/tty open itself, others may, too. And while anybody has it open, nothing but that first program's
own group may be in the foreground, as each job of an interactive shell is (dash keeps /dev/tty open, bash does not).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ijfs.live.checks.result import CheckResult
from ijfs.live.process import procfs

OF_ANOTHER = "has /dev/tty open, and the first program at its terminal has not: CRIU cannot tell whose terminal it is"
END_IT = "end it, then save; as the first program at its terminal (`ijfs run -it -- PROGRAM`) it can be saved"

WITH_A_JOB = "has /dev/tty open while a job of a shell is in the foreground: CRIU cannot tell whose terminal it is"
STOP_THE_JOB = (
    "end that job, or stop it with ctrl-z, then save; where it is `sh` that has it open, take `bash`, which does not"
)

_TTY = os.makedev(5, 0)
_MASTER = os.makedev(5, 2)


def of_program(pid: int, members: Iterable[int]) -> Iterator[CheckResult]:
    """A refusal where there is such a process among `members`, those of the program of `pid`."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        order = list(_parents_first(pid, {member: procfs.parent_of(member) for member in members}))
        first = next((member for member in order if _holds(member, _TTY)), None)
        if first is None or not (own := _terminal_of(first)).device:
            return
        if own.foreground != own.session:
            yield _refusal(first, WITH_A_JOB, STOP_THE_JOB)
        elif first not in (_first_at(order, own.device), _first_master(order, os.minor(own.device))):
            yield _refusal(first, OF_ANOTHER, END_IT)


def _refusal(pid: int, what: str, remedy: str) -> CheckResult:
    evidence = f"process {pid} ({procfs.name_of(pid)}) {what}"
    return CheckResult(check="terminal", outcome="refuse", evidence=evidence, remedy=remedy)


def _parents_first(pid: int, parents: dict[int, int | None]) -> Iterator[int]:
    """As CRIU goes through a program: each process, then its children, older ones first."""
    yield pid
    children = [member for member, parent in parents.items() if parent == pid and member != pid]
    for child in sorted(children, key=lambda child: procfs.start_ticks(child) or 0):
        yield from _parents_first(child, parents)


class _Terminal(NamedTuple):
    """A process's controlling terminal: its device number, 0 where it has none, whose session's it is, and the group in
    its foreground."""

    device: int
    session: int
    foreground: int


def _terminal_of(pid: int) -> _Terminal:
    """As proc_pid_stat(5) has it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    session, number, foreground = (int(field) for field in fields[3:6])
    device = os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00) if number else 0
    return _Terminal(device, session, foreground)


def _first_at(order: Iterable[int], terminal: int) -> int | None:
    return next((pid for pid in order if _holds(pid, terminal)), None)


def _first_master(order: Iterable[int], index: int) -> int | None:
    """Who has the other end of a terminal: its index is that of the terminal."""
    for pid in order:
        for number in _files(pid, _MASTER):
            if f"tty-index:\t{index}\n" in Path(f"/proc/{pid}/fdinfo/{number}").read_text():
                return pid
    return None


def _holds(pid: int, device: int) -> bool:
    return any(True for _ in _files(pid, device))


def _files(pid: int, device: int) -> Iterator[str]:
    """The descriptors of a process that are that device; none of one that has ended."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/fd/{number}").st_rdev == device:
                    yield number
