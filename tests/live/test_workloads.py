"""What a notebook may have going on when it is saved: one kernel with all of it, verified in it and in two siblings.

Each workload is a cell that sets it up and a cell that proves it works, run before the save, after it in the original,
and in both siblings at once.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from live_env import Kernel, LiveEnv
from waiting import patient

from ijfs.live.client import api as client

pytestmark = [pytest.mark.root, pytest.mark.criu]


class Workload(NamedTuple):
    name: str
    set_up: str
    prove: str


WORKLOADS = [
    Workload(
        "threads",
        """
import threading, time
ticks = [0]
def tick():
    while True:
        ticks[0] += 1
        time.sleep(0.005)
threading.Thread(target=tick, daemon=True).start()
""",
        "n = ticks[0]\nwhile ticks[0] <= n + 5: time.sleep(0.01)",
    ),
    Workload(
        "asyncio",
        """
import asyncio
beats = [0]
async def beat():
    while True:
        beats[0] += 1
        await asyncio.sleep(0.005)
task = asyncio.get_running_loop().create_task(beat())
""",
        "n = beats[0]\nwhile beats[0] <= n + 5: await asyncio.sleep(0.01)",
    ),
    Workload(
        "a pool and a manager of multiprocessing",
        """
import multiprocessing, warnings, os
warnings.simplefilter("ignore")
context = multiprocessing.get_context("fork")
pool = context.Pool(2)
manager = context.Manager()
shared = manager.dict(seen=0)
""",
        """
assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
shared["seen"] += 1
assert shared["seen"] >= 1
""",
    ),
    Workload(
        "a shell in a terminal",
        """
import pty
shell_pid, shell = pty.fork()
if shell_pid == 0:
    os.execv("/bin/bash", ["bash", "--norc", "--noprofile", "-i"])
os.write(shell, b"remembered=42; PS1=; echo $((40+2))-set\\n")
said = b""
while b"42-set" not in said:
    said += os.read(shell, 4096)
""",
        """
os.write(shell, b"echo got:$((remembered+1)); tty\\n")
seen = b""
while b"/dev/pts/" not in seen:
    seen += os.read(shell, 4096)
assert b"got:43" in seen, seen
""",
    ),
    Workload(
        "POSIX shared memory",
        """
from multiprocessing import shared_memory
segment = shared_memory.SharedMemory(create=True, size=1 << 20, name="segment")
segment.buf[:6] = b"posix!"
""",
        """
again = shared_memory.SharedMemory(name="segment")
assert bytes(again.buf[:6]) == b"posix!"
segment.buf[6:8] = b"ok"
assert bytes(again.buf[6:8]) == b"ok"
again.close()
""",
    ),
    Workload(
        "System V shared memory",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
sysv = libc.shmget(0x1234, 65536, 0o1600)
address = libc.shmat(sysv, None, 0)
ctypes.memmove(address, b"sysv!", 5)
""",
        """
assert ctypes.string_at(address, 5) == b"sysv!"
other = libc.shmat(libc.shmget(0x1234, 0, 0), None, 0)
assert ctypes.string_at(other, 5) == b"sysv!"
libc.shmdt(ctypes.c_void_p(other))
""",
    ),
    Workload(
        "a memfd",
        "memfd = os.memfd_create('memfd'); os.write(memfd, b'memfd!')",
        "assert os.pread(memfd, 6, 0) == b'memfd!' and os.lseek(memfd, 0, os.SEEK_CUR) == 6",
    ),
    Workload(
        "a numpy memmap",
        """
import numpy as np
mapped = np.memmap("/tmp/mapped.dat", dtype="i8", mode="w+", shape=(100_000,))
mapped[:] = np.arange(100_000)
private = np.memmap("/tmp/mapped.dat", dtype="i8", mode="c", shape=(100_000,))
private[1] = 42
""",
        """
assert int(mapped.sum()) == 4999950000
assert int(np.fromfile("/tmp/mapped.dat", dtype="i8").sum()) == 4999950000
assert int(private[1]) == 42 and int(private[2]) == 2
mapped[0] += 1; mapped.flush(); mapped[0] -= 1; mapped.flush()
""",
    ),
    Workload(
        "a file lock",
        """
import fcntl, subprocess, sys
locked = open("/tmp/locked", "w"); fcntl.flock(locked, fcntl.LOCK_EX)
""",
        """
busy = subprocess.run(["flock", "-n", "/tmp/locked", "true"]).returncode
assert busy == 1, busy
""",
    ),
    Workload(
        "a record lock on a file that is mapped, too",
        """
import mmap
held = open("/tmp/held", "w+b"); held.truncate(4096); of_held = mmap.mmap(held.fileno(), 4096)
fcntl.lockf(held, fcntl.LOCK_EX, 10, 120)
take = "import fcntl; fcntl.lockf(open('/tmp/held', 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, START)"
""",
        """
asked = [sys.executable, "-c", take.replace("START", "129")]
assert b"BlockingIOError" in subprocess.run(asked, capture_output=True).stderr
assert subprocess.run([sys.executable, "-c", take.replace("START", "130")]).returncode == 0
""",
    ),
    Workload(
        "files without a name",
        """
nameless = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600); os.write(nameless, b"nameless")
deleted = open("/tmp/deleted", "w+b"); deleted.write(b"deleted"); deleted.flush(); os.unlink("/tmp/deleted")
""",
        """
assert os.pread(nameless, 8, 0) == b"nameless"
assert os.pread(deleted.fileno(), 7, 0) == b"deleted"
assert not os.path.exists("/tmp/deleted")
""",
    ),
    Workload(
        "an open file at its position, and one appended to",
        """
reading = open("/tmp/reading", "w+"); reading.write("0123456789"); reading.flush(); reading.seek(4)
journal = open("/tmp/journal", "a"); journal.write("one\\n"); journal.flush()
""",
        """
assert os.lseek(reading.fileno(), 0, os.SEEK_CUR) == 4
before = open("/tmp/journal").read(); journal.write("more\\n"); journal.flush()
assert open("/tmp/journal").read() == before + "more\\n"
""",
    ),
    Workload(
        "connections inside the sandbox",
        """
import socket
listener = socket.create_server(("127.0.0.1", 7000))
tcp = socket.create_connection(("127.0.0.1", 7000)); tcp_peer, _ = listener.accept()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 7001))
unix = socket.socket(socket.AF_UNIX); unix.bind("/tmp/unix.sock"); unix.listen()
unix_client = socket.socket(socket.AF_UNIX); unix_client.connect("/tmp/unix.sock"); unix_peer, _ = unix.accept()
pair = socket.socketpair()
""",
        """
for left, right in ((tcp, tcp_peer), (unix_client, unix_peer), pair):
    left.sendall(b"there"); assert right.recv(5) == b"there"
    right.sendall(b"back"); assert left.recv(4) == b"back"
udp.sendto(b"datagram", ("127.0.0.1", 7001)); assert udp.recv(8) == b"datagram"
late = socket.create_connection(("127.0.0.1", 7000)); late.close(); listener.accept()[0].close()
late = socket.socket(socket.AF_UNIX); late.connect("/tmp/unix.sock"); late.close(); unix.accept()[0].close()
""",
    ),
    Workload(
        "bytes on their way in a pipe and a socket",
        """
pipe = os.pipe(); os.write(pipe[1], b"in the pipe")
waiting = socket.socketpair(); waiting[0].send(b"waiting")
""",
        """
assert os.read(pipe[0], 100) == b"in the pipe"; os.write(pipe[1], b"in the pipe")
assert waiting[1].recv(100) == b"waiting"; waiting[0].send(b"waiting")
""",
    ),
    Workload(
        "an HTTP server on port 8000",
        """
import http.server, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(who.encode())
    def log_message(self, *args): pass
who = "original"
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
""",
        "assert urllib.request.urlopen('http://127.0.0.1:8000/', timeout=5).read().decode() == who",
    ),
    Workload(
        "epoll, an eventfd and a timerfd",
        """
import select
epoll = select.epoll(); poked = os.pipe(); epoll.register(poked[0], select.EPOLLIN)
eventfd = os.eventfd(3)
timerfd = libc.timerfd_create(1, 0)
class timespec(ctypes.Structure): _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]
class itimerspec(ctypes.Structure): _fields_ = [("interval", timespec), ("value", timespec)]
libc.timerfd_settime(timerfd, 0, ctypes.byref(itimerspec(timespec(0, 20_000_000), timespec(0, 20_000_000))), None)
rings = [0]
def listen():
    while True: rings[0] += int.from_bytes(os.read(timerfd, 8), "little")
threading.Thread(target=listen, daemon=True).start()
""",
        """
os.write(poked[1], b"x"); assert epoll.poll(1) == [(poked[0], select.EPOLLIN)]; os.read(poked[0], 1)
os.eventfd_write(eventfd, 1); assert os.eventfd_read(eventfd) >= 1; os.eventfd_write(eventfd, 3)
n = rings[0]
while rings[0] <= n + 2: time.sleep(0.01)
""",
    ),
    Workload(
        "inotify",
        """
os.makedirs("/tmp/watched", exist_ok=True)
inotify = libc.inotify_init1(os.O_NONBLOCK); libc.inotify_add_watch(inotify, b"/tmp/watched", 0x100)
""",
        """
made = f"/tmp/watched/{time.time_ns()}"; open(made, "w").close()
assert os.path.basename(made).encode() in os.read(inotify, 4096)  # the kernel queues it before the call returns
""",
    ),
    Workload(
        "an interval timer",
        """
import signal
alarms = [0]
def alarm(*args): alarms[0] += 1
signal.signal(signal.SIGALRM, alarm); signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
""",
        "n = alarms[0]\nwhile alarms[0] <= n + 2: time.sleep(0.01)",
    ),
    Workload(
        "matplotlib and pandas",
        """
import io, hashlib, matplotlib; matplotlib.use("agg")
import matplotlib.pyplot as plt, pandas as pd
frame = pd.DataFrame({"x": np.arange(100_000), "y": np.arange(100_000) % 7})
figure, axes = plt.subplots(figsize=(2, 1), dpi=50); axes.plot([1, 2, 3], [3, 1, 2])
def picture():
    out = io.BytesIO(); figure.savefig(out, format="raw"); return hashlib.sha256(out.getvalue()).hexdigest()
drawn = picture()
""",
        "assert picture() == drawn and frame.groupby('y').x.sum().loc[3] == sum(range(3, 100_000, 7))",
    ),
    Workload(
        "300 MB of numpy",
        """
array = np.random.default_rng(1).integers(0, 255, 75_000_000, dtype="u4"); digest = hashlib.sha256(array).hexdigest()
""",
        "assert hashlib.sha256(array).hexdigest() == digest",
    ),
    Workload(
        "a child process and its pipes",
        """
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
""",
        "child.stdin.write(b'hello\\n'); child.stdin.flush(); assert child.stdout.readline() == b'hello\\n'",
    ),
    Workload(
        "files in the working directory, deleted and linked ones",
        """
os.makedirs("/root/ijfs-work", exist_ok=True); os.chdir("/root/ijfs-work")
open("kept", "w").write("kept"); open("removed", "w").write("x"); os.unlink("removed")
os.link("kept", "linked"); os.symlink("kept", "pointer"); os.setxattr("kept", "user.note", b"noted")
""",
        """
assert os.getcwd() == "/root/ijfs-work" and sorted(os.listdir()) == ["kept", "linked", "pointer"]
assert os.stat("kept").st_ino == os.stat("linked").st_ino and os.getxattr("linked", "user.note") == b"noted"
""",
    ),
]


def prove_all(kernel: Kernel) -> None:
    """Every proof in that kernel; all failures, not only the first."""
    failed = []
    for workload in WORKLOADS:
        try:
            kernel.run(workload.prove)
        except AssertionError as error:
            failed.append(f"{workload.name}: {error}")
    assert not failed, "\n".join(failed)


@pytest.fixture(scope="module")
def busy(shared_env: LiveEnv) -> Kernel:
    kernel = shared_env.kernel("busy")
    for workload in WORKLOADS:
        kernel.run(workload.set_up)
    return kernel


@pytest.fixture(scope="module")
def siblings(shared_env: LiveEnv, busy: Kernel) -> list[Kernel]:
    """Two copies, `left` and `right`."""
    prove_all(busy)
    result = shared_env.save("busy")
    assert result.frozen_s < patient(30)
    prove_all(busy)
    return [shared_env.talk(info) for info in client.fork(shared_env.repo, result.snapshot, ["left", "right"])]


def test_every_workload_goes_on_in_the_original_and_in_two_siblings_at_once(
    busy: Kernel, siblings: list[Kernel]
) -> None:
    for number, sibling in enumerate(siblings):
        sibling.run(f"who = 'sibling {number}'; open('kept', 'a').write(who)")
    for kernel in (busy, *siblings):
        prove_all(kernel)
    assert [sibling.run("print(open('kept').read())") for sibling in siblings] == ["keptsibling 0", "keptsibling 1"]
    assert busy.run("print(who, open('kept').read())") == "original kept"


def test_a_sibling_with_all_of_it_can_be_saved_and_restored_again(shared_env: LiveEnv, siblings: list[Kernel]) -> None:
    result = shared_env.save("left", "second generation")
    assert not result.warnings
    shared_env.stop("right", timeout_s=0)
    grandchild = shared_env.talk(shared_env.restore(result.snapshot, "grandchild", eager=True))
    prove_all(grandchild)
