"""What /proc says about a process: is it the one we mean, who belongs to it; used by keeper, client and save.

Read here and not by psutil, whose import takes 5 of the 60 ms of `ijfs ps` and whose look at one process 35 µs against
13; and it knows neither namespaces nor a kernel's boot id. It serves where no start waits: gpu/preflight.py, the demo.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ijfs.live.model.records import Process


def boot_id() -> str:
    """The running kernel's boot id: a recorded pid means nothing after a reboot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot (field 22 of /proc/PID/stat), None when there is none."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def _stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat after the command name (which may hold spaces and parentheses): [0] is the state."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def identify(pid: int) -> Process | None:
    """The process as a record, None when there is none."""
    ticks = start_ticks(pid)
    return None if ticks is None else Process(pid, ticks)


def is_alive(process: Process | None) -> bool:
    """Whether exactly this process still runs. A zombie does not, unless only its first thread has ended: the others
    may hold its files, locks and mounts still (a killed keeper's do for some ms)."""
    if process is None:
        return False
    fields = _stat_fields(process.pid)
    return fields is not None and int(fields[19]) == process.start_ticks and not _has_ended(fields)


def _has_ended(fields: Sequence[str]) -> bool:
    return fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)


def state(pid: int) -> str:
    """The state letter of a process (R, S, D, T, Z, …), "" when there is none."""
    fields = _stat_fields(pid)
    return fields[0] if fields else ""


def tracer(pid: int) -> int:
    """Who traces a process; 0: nobody, or there is no such process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.partition(":")[2])
    return 0


def name_of(pid: int) -> str:
    """What a process or thread calls itself, "?" when there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def runs(name: str) -> bool:
    """Whether any process calls itself so."""
    return any(entry.isdigit() and name_of(int(entry)) == name for entry in os.listdir("/proc"))


def parent_of(pid: int) -> int | None:
    """The pid of a process's parent, None when there is no such process."""
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else None


def inner_pid(pid: int) -> int:
    """The number of a process or thread in its own pid namespace (the last of NSpid; proc(5)). OSError where it is
    gone."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def processor_seconds(pid: int) -> float:
    """Seconds of one processor that a process took, and its children that it has waited for (proc(5), stat: utime to
    cstime); 0 where it is gone."""
    fields = _stat_fields(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def network_bytes(pid: int) -> int:
    """Bytes that came in or went out so far through the devices of a process's network, loopback left out (proc(5),
    net/dev); 0 where it is gone."""
    with contextlib.suppress(OSError):
        lines = [line.partition(":") for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]]
        counts = [counted.split() for name, _, counted in lines if name.strip() != "lo"]
        return sum(int(each[0]) + int(each[8]) for each in counts)
    return 0


def is_connected(pid: int, port: int) -> bool:
    """Whether somebody is connected to this TCP port in a process's network (proc(5), net/tcp: state 01)."""
    wanted = f":{port:04X}"
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        return any(row[1].endswith(wanted) and row[3] == "01" for row in rows)
    return False


def memory_in_smaps(pid: int) -> dict[str, int]:
    """Bytes of all mappings of a process together, by kind (`Pss`, `Rss`, `LazyFree`, …; proc(5), smaps_rollup); empty
    where the system does not say."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return {}


def dumpable_bytes(pid: int) -> int:
    """Resident anonymous and shared memory of a process, in bytes (VmRSS without clean pages of mapped files)."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssShmem"):
            total += int(value.split()[0]) << 10
    return total


def open_pidfd(process: Process) -> int | None:
    """A pidfd of exactly this process, None when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if start_ticks(process.pid) != process.start_ticks:
        os.close(fd)
        return None
    return fd


def namespace_id(pid: int | str, kind: str) -> int:
    """The inode number of a process's namespace (`net`, `pid`, …)."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def processes_on(directory: Path) -> list[int]:
    """The pids of all processes that belong to an instance's directory: they have an overlay from it mounted (a
    sandbox, a keeper), are a CRIU that works in it, or complain into it (a pager). Not who merely reads its logs."""
    wanted = os.fsencode(directory) + b"/"
    return sorted(
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and int(entry) != os.getpid() and _is_on(entry, wanted)
    )


def _is_on(pid: str, directory: bytes) -> bool:
    with contextlib.suppress(OSError):
        if b"upperdir=" + directory in Path(f"/proc/{pid}/mountinfo").read_bytes():
            return True
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.endswith(b"criu") for word in words[:2]) and any(word.startswith(directory) for word in words):
            return True
        return os.readlink(f"/proc/{pid}/fd/2".encode()).startswith(directory)
    return False


def processes_in(kind: str, inode: int) -> list[int]:
    """The pids of all processes in a namespace, in ascending order."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if namespace_id(entry, kind) == inode:
                found.append(int(entry))
        except OSError:
            continue
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """The pids of all processes below a process, whatever namespaces they are in, itself left out."""
    found: list[int] = []
    pending = [pid]
    while pending:
        for task in glob.glob(f"/proc/{pending.pop()}/task/*/children"):
            with contextlib.suppress(OSError):
                children = [int(word) for word in Path(task).read_text().split()]
                found += children
                pending += children
    return found
