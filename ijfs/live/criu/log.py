"""From CRIU's log to a sentence: the line that decided, and for what is known, what to do; called by command.py."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from ijfs.live.criu.sentences import KNOWN
from ijfs.live.errors import CriuError, PassingError, ProgramRefusedError
from ijfs_engine.errors import IjfsError, StorageError

# A line of the code that CRIU runs inside the program begins with `pie: `, its process's number.
_ERROR = re.compile(r"(?:\(\d+\.\d+\)\s*)?(?:pie:\s*)?(?:\d+:\s*)?\s*Error \(([^)]*)\):\s*(.*)")

_CUT_SHORT = re.compile(r"Will restore (\d+) with interrupted system call")

# A log takes 20 KiB for a small program; with it go a file of statistics and one of a number.
_LOG = 64 << 10

# What follows from an earlier error and explains nothing.
_EMPTY = re.compile(
    r"rlimit: Can.t setup|tun: Unable to create tun|"
    r"Dumping FAILED|Restoring FAILED|Unable to .*kill|failed to kill|exited, status|exited with",
    re.I,
)


# The loader's complaint of a library that a program which CRIU calls cannot preload. It calls it ignored, and so it is.
_LOADER = re.compile(r"ERROR: ld\.so: object '.*' from LD_PRELOAD ")


def error_lines(log: Path) -> list[str]:
    """CRIU's error lines, first one first, without time stamps and source positions."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    found = [match[2].strip() for line in text.splitlines() if (match := _ERROR.match(line.strip()))]
    return [line for line in found if line and not _EMPTY.search(line)]


def cut_short(log: Path) -> list[int]:
    """The threads of which CRIU says that their system call ends with EINTR: those that restart_calls.c left so."""
    with contextlib.suppress(OSError):
        return [int(thread) for thread in _CUT_SHORT.findall(log.read_text(errors="replace"))]
    return []


def explain(verb: str, log: Path, complaint: str, status: int) -> IjfsError:
    """The error for a CRIU that failed: a CriuError, or a StorageError where its own files found no room."""
    lines = error_lines(log)
    if _is_full(log.parent):
        # What decided may not have found room in the log, and what is there may tell of what followed from it.
        first = f" (CRIU: {lines[0]})" if lines else ""
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(log.parent))
        return StorageError.of(f"CRIU's {verb} found no room for its files{first}", full)
    if not lines:
        said = [line for line in complaint.strip().splitlines() if not _LOADER.match(line)]
        reason = said[-1] if said else f"it ended with status {status} and gave no reason"
        return CriuError(f"CRIU refused the {verb}: {reason}", hint=f"its log is {log}")
    for known in KNOWN:
        for line in lines:
            match = re.search(known.pattern, line)
            if match:
                text = known.sentence.format(match[0], *(group or "" for group in match.groups()))
                kind = PassingError if known.passes else ProgramRefusedError if known.of_program else CriuError
                return kind(f"{_named(text, verb)} (CRIU: {line})", hint=known.hint)
    return CriuError(
        f"CRIU refused the {verb} (CRIU: {lines[0]})", hint=f"its log is {log}; `ijfs doctor` knows more blockers"
    )


def _is_full(directory: Path) -> bool:
    """Whether the disk has no room even for a log: then what CRIU had to say is lost."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize < _LOG


def _named(text: str, verb: str) -> str:
    """The sentence with the names of the processes it speaks of. (At a restore, CRIU's numbers are those inside.)"""

    def named(found: re.Match[str]) -> str:
        with contextlib.suppress(OSError):
            return f"{found[0]} ({Path(f'/proc/{found[1]}/comm').read_text().strip()})"
        return found[0]

    return re.sub(r"\bprocess (\d+)", named, text) if verb == "dump" else text
