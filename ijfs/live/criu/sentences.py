"""What CRIU's error lines mean, and what to do about each: the table that log.py looks lines up in.

Every line was met with a program that was saved or restored. The first entry that fits any line of a log is the one
that is told, so that what is particular stands before what is general.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """One kind of failure: the pattern of CRIU's line, a sentence and a hint for it. Groups of the pattern may be used
    in the sentence by their numbers."""

    pattern: str
    sentence: str
    hint: str
    of_program: bool = False
    """Whether it is the program that has what CRIU cannot save: trying again does not help."""
    passes: bool = False
    """Whether it is the program's and may be over in a moment: a save tries again by itself."""


KNOWN: tuple[Known, ...] = (
    Known(
        r"anon_hugepage|Can't mmap shmem.*Cannot allocate",
        "CRIU found no free huge pages of its own, which it needs to save those of the program",
        "raise vm.nr_hugepages by as many as the program shares, and at least by one",
    ),
    Known(
        r"Can't dump nested (\w+) namespace for (\d+)",
        "process {2} runs in a {1} namespace of its own, which CRIU cannot save",
        "end that nested sandbox (bubblewrap, rootless podman, a browser's own: `--no-sandbox`), or start what "
        "is in it without it",
        of_program=True,
    ),
    Known(
        r"Can't restore sub-task in NS \(cflags (\S+)\)",
        "a process of the program ran in a namespace of its own when it was saved, and CRIU cannot bring that back",
        "save the program again without the nested sandbox (`unshare`, `ip netns`, bubblewrap)",
        of_program=True,
    ),
    Known(
        r"Unknown shit \d+ \(/secretmem",
        "the program has secret memory (memfd_secret), which nobody but itself can read",
        "none: a program that uses it cannot be saved from outside",
        of_program=True,
    ),
    Known(
        r"Can't get rlimit \d+: Operation not permitted",
        "a process of the program belongs to another user, and ijfs lacks CAP_SYS_RESOURCE, which CRIU needs for it",
        "give the container that capability (docker, podman: --cap-add=SYS_RESOURCE), or run the program as root",
        of_program=True,
    ),
    Known(
        r"OOM storing pipe",
        "the program has more than 1024 pipes with something in them, or as many FIFOs: CRIU has room for no more",
        "close those it does not need",
        of_program=True,
    ),
    Known(
        r"Unknown socket collected \(family (\d+)\)",
        "the program has a socket of a family that CRIU does not know ({1})",
        "close it in the program",
        of_program=True,
    ),
    Known(
        r"Unsupported proto (\d+) for socket",
        "the program has a socket of a protocol that CRIU does not know ({1}; 262 is multipath TCP)",
        "let it use TCP or UDP",
        of_program=True,
    ),
    Known(
        r"In-flight connection",
        "a connection to a server of the program had not been accepted, at any of several tries",
        "save it when the server is less busy; one that never accepts keeps the program from being saved",
        passes=True,
    ),
    Known(
        r"Can't lookup mount=\S+ for fd=(\d+) path=(\S+)",
        "the file {2}, which the program has open (file descriptor {1}), lies on no mount that CRIU sees (a "
        "POSIX message queue, a mount that was taken away, an overlay on an overlay)",
        "close it in the program, or keep it on an ordinary file system; docs/places.md for containers",
        of_program=True,
    ),
    Known(
        r"Can't dump file (\d+) of that type \[\d+\] \((?:anon )?(?:anon_inode:)?(.*?)\)+;?$",
        "the program has {2} open (file descriptor {1}), which CRIU cannot save",
        "close it in the program",
        of_program=True,
    ),
    Known(
        r"Unseizable non-zombie (\d+) found",
        "process {1} cannot be stopped by CRIU: something traces it already",
        "detach the debugger or strace",
        of_program=True,
    ),
    Known(
        r"Unable to convert the notify thread|Can't create posix timer",
        "a POSIX timer of the program notifies a thread that CRIU cannot find",
        "try the save again; a timer that sends a signal to the process (SIGEV_SIGNAL) can be saved always",
    ),
    Known(
        r"Can't bind inet socket.*Cannot assign requested address",
        "an address that the program listens on is not there",
        "the sandbox's network was changed in a way that is not in the snapshot (a device of its own): "
        "docs/guide.md, Limits",
    ),
    Known(
        r"Can't restore not-sent send queue",
        "a TCP connection of the program has a full send queue, and this kernel has no queue to hold it back with",
        "a kernel with CONFIG_NET_SCHED",
    ),
    Known(
        r"Unable to map ANON_VMA|Can't (?:mmap|map) .*Cannot allocate memory",
        "the program has reserved more address space than this machine lets a program map",
        "`sysctl vm.overcommit_memory=1`, or a machine with more memory and swap; with vm.overcommit_memory=2 "
        "large reservations cannot be restored",
    ),
    Known(
        r"(?:CPU|cpu).*(?:not supported|isn't compatible|incompatible|mismatch)",
        "this processor lacks what the program was using where it was saved",
        "restore it on a processor of the same family or a newer one",
    ),
    Known(
        r"(?:doesn't have a proper root mount|unreachable sharing|failed to dump fs|Unsupported mount"
        r"|Can't handle mount|Mount .* is not supported)",
        "the program has a file system mounted that CRIU cannot save",
        "unmount it in the program (`mount` inside shows it)",
        of_program=True,
    ),
    Known(
        r"[Ss]ession leader|sid .* outside|pgid .* (?:outside|not found)|process group .* leader",
        "a process of the program belongs to a session or group whose leader is not part of it",
        "start it with `setsid` inside the program, not through `ijfs exec`",
        of_program=True,
    ),
    Known(
        r"io_uring|send_fds|Can't retrieve FDs",
        "the program has something open that CRIU cannot save (most often an io_uring)",
        "ijfs refuses io_uring to programs it starts unless the spec allows it; UV_USE_IO_URING=0 turns libuv's off",
        of_program=True,
    ),
    Known(
        r"File (\S+) has bad size (\d+) \(expect (\d+)\)",
        "the file {1} is not as it was: it has {2} bytes and had {3} when the program was saved",
        "bring the file (or the package it belongs to) back to the version of the snapshot, then restore again",
    ),
    Known(
        r"File (\S+) has bad mode",
        "the file {1} is not as it was: its type or permissions changed since the program was saved",
        "bring the file back as it was, then restore again",
    ),
    Known(
        r"(?i:File (\S+) has bad build-?id|build-?id .*?(/\S+))",
        "the library {1} is not the one the program was saved with",
        "install the version of the snapshot again, then restore; programs started with `--base` bring their own along",
    ),
    Known(
        r"Can't open file (\S+)(?: on restore)?: No such file",
        "the file {1}, which the program has open, is gone",
        "bring the file (or the package it belongs to) back, then restore again",
    ),
    Known(
        r"No such file or directory.*?(/\S+)|(/\S+).*No such file or directory",
        "a file the program needs is gone",
        "bring the file (or the package it belongs to) back, then restore again",
    ),
    Known(
        r"No space left on device",
        "there is no space left",
        "free some space (`ijfs du`, `ijfs gc`) and try again",
    ),
    Known(
        r"Can't dump ghost file (\S+) of (\d+) size",
        "the deleted file {1}, which the program still has open, is too large ({2} bytes) to save",
        "close it in the program",
        of_program=True,
    ),
    Known(
        r"Can't dump.*?(inotify|fanotify)|fsnotify.*Can't",
        "a watched file cannot be found again",
        "stop watching it in the program",
        of_program=True,
    ),
    Known(
        r"[Cc]an't (?:seize|attach)|PTRACE_SEIZE",
        "a process of the program cannot be stopped by CRIU",
        "a debugger or tracer on it has to let go first (`ijfs doctor NAME` shows it)",
        of_program=True,
    ),
    Known(
        r"[Uu]nable to freeze|freez\w* timeout|[Tt]imeout reached|seize.*[Tt]imeout",
        "the program could not be stopped in time",
        "a process in uninterruptible sleep (dead network or FUSE mount) cannot be frozen",
    ),
    Known(
        r"Can't lookup mount=",
        "a file that the program maps lies on an overlay that stands on another one",
        "in a container programs have to stand on a base: start it again without `--base none`, and keep what it "
        "maps on volumes that are no overlay; docs/places.md",
    ),
    Known(
        r"Can't get 1:16 opt",
        "this CRIU is too old for this kernel: it cannot save a TCP socket",
        "CRIU 4.2.1 or newer: `tools/setup` in a checkout of ijfs brings one",
    ),
    Known(
        r"no such process|No such process|Can't find (?:task|pid)|task.*exited",
        "the program ended while it was being saved",
        "`ijfs logs` shows its last words",
    ),
    Known(
        r"ctty inheritance detected.*no PTY peer",
        "a process of the program has /dev/tty open while a job of a shell is in the foreground: CRIU cannot tell "
        "whose terminal it is",
        "end that job, or stop it with ctrl-z, then save; where it is `sh` that has it open, take `bash`, which does "
        "not",
        of_program=True,
    ),
    Known(
        r"ctty inheritance detected",
        "a process of the program has /dev/tty open, and the first program at its terminal has not: CRIU cannot tell "
        "whose terminal it is",
        "end it, then save; as the first program at its terminal (`ijfs run -it -- PROGRAM`) it can be saved",
        of_program=True,
    ),
    Known(
        r"External socket is used|[Cc]an't dump half of stream unix connection",
        "the program is connected to a socket outside its sandbox",
        "close that connection in the program",
        of_program=True,
    ),
)
