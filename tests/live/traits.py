"""A program that sets what the kernel keeps of a process beside its memory, says what of it has another value than it
gave it, and goes on saying so: a line of JSON each time. For test_traits.py, which knows what has to come back.

What this machine does not let it set is in the list `cannot`.
"""

import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
SET_PERSONALITY, GET_MEMPOLICY, SET_MEMPOLICY, IOPRIO_SET, IOPRIO_GET, MSEAL = 135, 239, 238, 251, 252, 462
SCHED_SETATTR, SCHED_GETATTR = 314, 315


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(number: int, *arguments: object) -> int:
    return checked(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if type(a) is int else a for a in arguments)))


def prctl(option: int, value: object = 0) -> int:
    value = ctypes.c_ulong(value) if isinstance(value, int) else value
    return checked(libc.prctl(option, value, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def told(option: int) -> int:
    found = ctypes.c_int()
    prctl(option, ctypes.byref(found))
    return found.value


def read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def slice_ns(new: int = 0) -> int:
    attributes = (ctypes.c_uint64 * 7)()
    call(SCHED_GETATTR, 0, attributes, 56, 0)
    if new:
        attributes[3] = new
        call(SCHED_SETATTR, 0, attributes, 0)
    return attributes[3]


def mapped(*advice: int) -> int:
    """The address of four pages, the first of them written."""
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"written")
    for one in advice:
        memory.madvise(one)
    kept.append(memory)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def flags_at(address: int) -> list[str]:
    inside = False
    for line in read("/proc/self/smaps").splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


def policy() -> int:
    found = ctypes.c_int()
    call(GET_MEMPOLICY, ctypes.byref(found), 0, 0, 0, 0)
    return found.value


def burn() -> None:
    while time.process_time() < 0.3:
        pass


kept: list[object] = []
sealed = mapped()
advised = mapped(mmap.MADV_DONTDUMP, mmap.MADV_DONTFORK, mmap.MADV_HUGEPAGE, mmap.MADV_RANDOM)
locked = mapped()
unread = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
unread.bind(("127.0.0.1", 0))
unread.setblocking(False)
member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
one, other = socket.socketpair()
pipe, _ = os.pipe()
memory_file = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)

TRAITS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "niceness": (lambda: os.setpriority(os.PRIO_PROCESS, 0, 7), lambda: os.getpriority(os.PRIO_PROCESS, 0)),
    "scheduling class": (
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        lambda: os.sched_getscheduler(0),
    ),
    "processors": (
        lambda: os.sched_setaffinity(0, [max(os.sched_getaffinity(0))]),
        lambda: sorted(os.sched_getaffinity(0)),
    ),
    "io priority": (lambda: call(IOPRIO_SET, 1, 0, 3 << 13), lambda: call(IOPRIO_GET, 1, 0)),
    "timer slack": (lambda: prctl(29, 123456), lambda: prctl(30)),
    "oom score": (lambda: write("/proc/self/oom_score_adj", "345"), lambda: read("/proc/self/oom_score_adj")),
    "core filter": (
        lambda: write("/proc/self/coredump_filter", "0x11"),
        lambda: read("/proc/self/coredump_filter"),
    ),
    "subreaper": (lambda: prctl(36, 1), lambda: told(37)),
    "signal at the parent's death": (lambda: prctl(1, signal.SIGUSR1), lambda: told(2)),
    "no huge pages": (lambda: prctl(41, 1), lambda: prctl(42)),
    "no new privileges": (lambda: prctl(38, 1), lambda: prctl(39)),
    "name": (lambda: prctl(15, ctypes.c_char_p(b"traits")), lambda: read("/proc/self/comm")),
    "umask": (lambda: os.umask(0o27), lambda: read("/proc/self/status").split("Umask:")[1].split()[0]),
    "limit": (
        lambda: resource.setrlimit(resource.RLIMIT_CORE, (5, 5)),
        lambda: resource.getrlimit(resource.RLIMIT_CORE),
    ),
    "signal mask": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]),
        lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    ),
    "pending signal": (lambda: os.kill(os.getpid(), signal.SIGUSR2), lambda: sorted(signal.sigpending())),
    "interval timer": (
        lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 1000),
        lambda: signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 900,
    ),
    "advice": (lambda: None, lambda: [flag for flag in ("dd", "dc", "hg", "rr") if flag in flags_at(advised)]),
    "locked memory": (
        lambda: checked(libc.mlock(ctypes.c_void_p(locked), 4 * mmap.PAGESIZE)),
        lambda: "lo" in flags_at(locked),
    ),
    "pipe size": (
        lambda: fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 17),
        lambda: fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ),
    ),
    "file seals": (lambda: fcntl.fcntl(memory_file, 1033, 6), lambda: fcntl.fcntl(memory_file, 1034)),
    "owner of a socket": (
        lambda: fcntl.fcntl(one, fcntl.F_SETOWN, os.getpid()),
        lambda: fcntl.fcntl(one, fcntl.F_GETOWN),
    ),
    "TCP_NODELAY": (
        lambda: connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ),
    "SO_KEEPALIVE": (
        lambda: connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    ),
    "TCP_USER_TIMEOUT": (
        lambda: connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
        lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    ),
    "slice": (lambda: slice_ns(5_000_000), slice_ns),
    "personality": (lambda: call(SET_PERSONALITY, 0x0040000), lambda: call(SET_PERSONALITY, 0xFFFFFFFF)),
    "memory policy": (lambda: call(SET_MEMPOLICY, 1, ctypes.byref(ctypes.c_ulong(1)), 8), policy),
    "sealed memory": (lambda: call(MSEAL, sealed, mmap.PAGESIZE, 0), lambda: "sl" in flags_at(sealed)),
    "unread datagram": (
        lambda: unread.sendto(b"unread", unread.getsockname()),
        lambda: unread.recv(9, socket.MSG_PEEK).decode(),
    ),
    "multicast": (
        lambda: member.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1"),
        ),
        lambda: "030201EF" in read("/proc/net/igmp"),
    ),
    "peer's process": (
        lambda: None,
        lambda: struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid(),
    ),
    "start time": (lambda: None, lambda: read("/proc/self/stat").rpartition(")")[2].split()[19]),
    "processor time": (burn, lambda: time.process_time() > 0.3),
}


def value(of: Callable[[], object]) -> object:
    """As JSON has it; of what cannot be asked (any more) why not."""
    try:
        return json.loads(json.dumps(of()))
    except OSError as error:
        return str(error)


def main() -> None:
    cannot = []
    for name, (give, _) in TRAITS.items():
        try:
            give()
        except OSError:
            cannot.append(name)
    given = {name: value(ask) for name, (_, ask) in TRAITS.items()}
    while True:
        changed = [name for name, (_, ask) in TRAITS.items() if name not in cannot and value(ask) != given[name]]
        print(json.dumps({"changed": changed, "cannot": cannot}), flush=True)
        time.sleep(0.05)


main()
