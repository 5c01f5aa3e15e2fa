"""From CRIU's log to a sentence: the line that decided, and for what is known, what to do; called by command.py."""

from __future__ import annotations

import re
from pathlib import Path

from ijfs.live.errors import CriuError

_ERROR = re.compile(r"(?:\(\d+\.\d+\)\s*)?(?:\d+:\s*)?\s*Error \(([^)]*)\):\s*(.*)")

# What follows from an earlier error and explains nothing.
_EMPTY = re.compile(
    r"rlimit: Can.t setup|tun: Unable to create tun|"
    r"Dumping FAILED|Restoring FAILED|Unable to .*kill|failed to kill|exited, status|exited with",
    re.I,
)

# (pattern of CRIU's line, sentence, hint); groups of the pattern may be used in the sentence.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"io_uring|send_fds|Can't retrieve FDs",
        "the program has something open that CRIU cannot save (most often an io_uring)",
        "ijfs refuses io_uring to programs it starts unless the spec allows it; UV_USE_IO_URING=0 turns libuv's off",
    ),
    (
        r"File (\S+) has bad size (\d+) \(expect (\d+)\)",
        "the file {1} is not as it was: it has {2} bytes and had {3} when the program was saved",
        "bring the file (or the package it belongs to) back to the version of the snapshot, then restore again",
    ),
    (
        r"File (\S+) has bad mode",
        "the file {1} is not as it was: its type or permissions changed since the program was saved",
        "bring the file back as it was, then restore again",
    ),
    (
        r"(?i:File (\S+) has bad build-?id|build-?id .*?(/\S+))",
        "the library {1} is not the one the program was saved with",
        "install the version of the snapshot again, then restore; programs started with `--base` bring their own along",
    ),
    (
        r"Can't open file (\S+)(?: on restore)?: No such file",
        "the file {1}, which the program has open, is gone",
        "bring the file (or the package it belongs to) back, then restore again",
    ),
    (
        r"No such file or directory.*?(/\S+)|(/\S+).*No such file or directory",
        "a file the program needs is gone",
        "bring the file (or the package it belongs to) back, then restore again",
    ),
    (r"No space left on device", "there is no space left", "free some space (`ijfs du`, `ijfs gc`) and try again"),
    (
        r"Can't dump ghost file (\S+) of (\d+) size",
        "the deleted file {1}, which the program still has open, is too large ({2} bytes) to save",
        "close it in the program",
    ),
    (
        r"Can't dump.*?(inotify|fanotify)|fsnotify.*Can't",
        "a watched file cannot be found again",
        "stop watching it in the program",
    ),
    (
        r"[Cc]an't (?:seize|attach)|PTRACE_SEIZE",
        "a process of the program cannot be stopped by CRIU",
        "a debugger or tracer on it has to let go first (`ijfs doctor NAME` shows it)",
    ),
    (
        r"[Uu]nable to freeze|freez\w* timeout|[Tt]imeout reached|seize.*[Tt]imeout",
        "the program could not be stopped in time",
        "a process in uninterruptible sleep (dead network or FUSE mount) cannot be frozen",
    ),
    (
        r"Can't lookup mount=",
        "a file that the program maps lies on an overlay that stands on another one",
        "in a container programs have to stand on a base: start it again without `--base none`, and keep what it maps "
        "on volumes that are no overlay; docs/places.md",
    ),
    (
        r"Can't get 1:16 opt",
        "this CRIU is too old for this kernel: it cannot save a TCP socket",
        "CRIU 4.2.1 or newer: `tools/setup` in a checkout of ijfs brings one",
    ),
    (
        r"no such process|No such process|Can't find (?:task|pid)|task.*exited",
        "the program ended while it was being saved",
        "`ijfs logs` shows its last words",
    ),
    (
        r"anon_hugepage|Can't mmap shmem.*Cannot allocate",
        "CRIU found no free huge pages of its own, which it needs to save those of the program",
        "raise vm.nr_hugepages by as many as the program shares, and at least by one",
    ),
    (
        r"External socket is used|[Cc]an't dump half of stream unix connection",
        "the program is connected to a socket outside its sandbox",
        "close that connection in the program",
    ),
)


def error_lines(log: Path) -> list[str]:
    """CRIU's error lines, first one first, without time stamps and source positions."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    found = [match[2].strip() for line in text.splitlines() if (match := _ERROR.match(line.strip()))]
    return [line for line in found if line and not _EMPTY.search(line)]


def explain(verb: str, log: Path, complaint: str, status: int) -> CriuError:
    """The error for a CRIU that failed."""
    lines = error_lines(log)
    if not lines:
        said = complaint.strip().splitlines()
        reason = said[-1] if said else f"it ended with status {status} and gave no reason"
        return CriuError(f"CRIU refused the {verb}: {reason}", hint=f"its log is {log}")
    for pattern, sentence, hint in _KNOWN:
        for line in lines:
            match = re.search(pattern, line)
            if match:
                text = sentence.format(match[0], *(group or "" for group in match.groups()))
                return CriuError(f"{text} (CRIU: {line})", hint=hint)
    return CriuError(
        f"CRIU refused the {verb} (CRIU: {lines[0]})", hint=f"its log is {log}; `ijfs doctor` knows more blockers"
    )
