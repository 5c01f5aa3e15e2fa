"""What a save takes, comes back: programs that were saved once and could not be restored, or not as they were."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.checkpoint import restore
from ijfs.live.checks import blockers
from ijfs.live.client import api as client
from ijfs.live.errors import CriuError, ProgramRefusedError
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.silence import Silence

pytestmark = [pytest.mark.root, pytest.mark.criu]

# Two connections whose send queues are full: one inside, one to a client outside that does not read. Both go on when
# `/tmp/go` is there; the outside one may have been cut.
QUEUES = """
import os, socket, time
def fill(connection):
    connection.setblocking(False)
    sent = 0
    try:
        while True:
            sent += connection.send(bytes([sent >> 12 & 255]) * 65536)
    except BlockingIOError:
        return sent
inner, outer = socket.create_server(("127.0.0.1", 7001)), socket.create_server(("127.0.0.1", 7002))
print("listens", flush=True)
writer = socket.create_connection(("127.0.0.1", 7001))
reader, _ = inner.accept()
queued = fill(writer)
client, _ = outer.accept()
fill(client)
print("full", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
got = b""
while len(got) < queued:
    got += reader.recv(1 << 20)
writer.setblocking(True)
writer.sendall(b"end")
print("right" if got[-1:] != b"" and reader.recv(3) == b"end" else "wrong", flush=True)
time.sleep(1000)
"""

# The main thread is notified by a timer, and 100 GB more than the machine has are reserved, a page of it in use.
TIMER_AND_RESERVATION = """
import ctypes, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
memory = 1 << 10
for line in open("/proc/meminfo"):
    if line.startswith(("MemTotal", "SwapTotal")):
        memory += int(line.split()[1]) << 10
reserved = libc.mmap(None, memory + (100 << 30), 0, 0x22, -1, 0)
assert reserved != 2 ** 64 - 1 and libc.mprotect(reserved, 4096, 3) == 0
ctypes.memmove(reserved, b"in use", 6)
class SigEvent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("number", ctypes.c_int), ("notify", ctypes.c_int),
                ("thread", ctypes.c_int), ("rest", ctypes.c_int * 11)]
rung = 0
def ring(*args):
    global rung
    rung += 1
signal.signal(signal.SIGRTMIN + 1, ring)
for thread in (threading.get_native_id(), threading.get_native_id()):
    timer, event = ctypes.c_void_p(), SigEvent(None, signal.SIGRTMIN + 1, 4, thread)
    assert libc.timer_create(1, ctypes.byref(event), ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 50_000_000, 0, 50_000_000), None) == 0
while True:
    before = rung
    while rung < before + 3:
        time.sleep(0.01)
    assert ctypes.string_at(reserved, 6) == b"in use"
    assert libc.mprotect(reserved + 4096, 4096, 3) == 0
    print("rings", flush=True)
"""


MAKE_DEVICE = (
    "ip link add own0 type veth peer name own1 && ip addr add 10.8.0.1/24 dev own0 && "
    "ip link set own0 up && ip link set own1 up"
)


def log_lines(env: LiveEnv, name: str) -> list[str]:
    return Path(client.describe(env.repo, name).log).read_text().splitlines()


@pytest.fixture(params=["lazy", "eager"])
def eager(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "eager")


def test_connections_with_full_send_queues_lose_nothing(live_env: LiveEnv) -> None:
    info = live_env.python("queues", QUEUES, ports=(7002,))
    assert eventually(lambda: "listens" in log_lines(live_env, "queues"))
    with contextlib.closing(socket.create_connection(("127.0.0.1", info.relay[0].host))):
        assert eventually(lambda: "full" in log_lines(live_env, "queues"))
        saved = live_env.save("queues")
    for number, eager in enumerate((False, True, False, True)):
        name = f"again{number}"
        live_env.restore(saved.snapshot, name, eager=eager)
        assert live_env.exec(name, "touch", "/tmp/go") == 0
        assert eventually(lambda: log_lines(live_env, name)[-1:] == ["right"])  # noqa: B023


def test_timers_of_the_main_thread_ring_and_a_large_reservation_can_be_used(live_env: LiveEnv, eager: bool) -> None:
    live_env.python("mixed", TIMER_AND_RESERVATION)
    assert eventually(lambda: "rings" in log_lines(live_env, "mixed"))
    saved = live_env.save("mixed")
    live_env.restore(saved.snapshot, "again", eager=eager)
    count = len(log_lines(live_env, "again"))
    assert eventually(lambda: len(log_lines(live_env, "again")) > count + 1)
    assert log_lines(live_env, "again")[count + 1 :] == ["rings"] * (len(log_lines(live_env, "again")) - count - 1)


def arrives(network_fd: int) -> bool:
    """Whether a datagram comes through."""
    with ns.in_network(network_fd):
        receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with receiver, sender:
        receiver.settimeout(0.2)
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(b"x", receiver.getsockname())
        with contextlib.suppress(TimeoutError):
            return receiver.recv(1) == b"x"
    return False


def test_a_silent_network_swallows_everything_and_is_as_before_after_it() -> None:
    network_fd = ns.new_network()
    assert arrives(network_fd)
    silence = Silence(network_fd)
    if not silence.holds:
        pytest.skip("this kernel has no queueing disciplines")
    assert not arrives(network_fd)
    silence.end()
    silence.end()
    assert arrives(network_fd)


@pytest.mark.parametrize("kind", ["net", "pid", "uts"])
def test_a_nested_sandbox_is_refused_before_the_freeze_and_runs_on(live_env: LiveEnv, kind: str) -> None:
    live_env.command("outer", f"unshare --{kind} --fork sh -c 'echo inside; exec sleep 1000' & wait", privileged=True)
    assert eventually(lambda: "inside" in log_lines(live_env, "outer"))
    with pytest.raises(
        ProgramRefusedError, match=r"process \d+ \((sleep|unshare|sh)\) runs in a .* of its own"
    ) as caught:
        live_env.save("outer")
    assert caught.value.exit_code == 12
    pid = client.describe(live_env.repo, "outer").pid
    assert pid is not None
    assert any("of its own" in found.evidence for found in blockers.of_program(pid)), "doctor says it before"
    assert live_env.exec("outer", "true") == 0


def test_the_log_of_a_restore_that_failed_can_be_looked_at(live_env: LiveEnv) -> None:
    library = live_env.work / "library"
    library.write_text("as it was saved")
    script = "import time; kept = open('library'); print('open', flush=True); time.sleep(1000)"
    live_env.python("holder", script, cwd=str(live_env.work))
    assert eventually(lambda: "open" in log_lines(live_env, "holder"))
    saved = live_env.save("holder")
    library.write_text("upgraded since")
    with pytest.raises(CriuError, match="library is not as it was"):
        live_env.restore(saved.snapshot, "again")
    assert "bad size" in (live_env.repo / "live" / restore.KEPT_LOG).read_text()
    assert not (live_env.repo / "live" / "again").exists()


def test_a_save_that_is_to_be_proven_says_whether_it_can_be_restored(live_env: LiveEnv) -> None:
    counter = "import time\nfor n in range(10**6): print(n, flush=True); time.sleep(0.02)"
    live_env.python("counter", counter)
    assert eventually(lambda: len(log_lines(live_env, "counter")) > 3)
    proven = live_env.save("counter", verify=True)
    assert proven.verified is True
    assert live_env.save("counter").verified is None
    assert [path.name for path in (live_env.repo / "live/counter").glob("box-*")] == ["box-1"]
    live_env.restore(proven.snapshot, "again")
    count = len(log_lines(live_env, "again"))
    assert eventually(lambda: len(log_lines(live_env, "again")) > count)


def test_a_program_whose_snapshot_cannot_be_restored_is_not_ended_by_its_save(live_env: LiveEnv) -> None:
    """It listens at an address of a network device of its own, which no snapshot has."""
    live_env.command("server", f"{MAKE_DEVICE} && exec {sys.executable} -u -m http.server -b 10.8.0.1 8000")
    assert eventually(lambda: any("Serving" in line for line in log_lines(live_env, "server")))
    saved = live_env.save("server", stop=True)  # known from the images, without being tried
    assert saved.verified is False
    assert not saved.stopped
    assert any("network devices" in warning for warning in saved.warnings)
    why = "cannot be restored: it has a socket at 10.8.0.1, an address of the network device own0"
    assert any(why in warning for warning in saved.warnings)
    assert live_env.exec("server", "true") == 0
    assert [path.name for path in (live_env.repo / "live/server").glob("box-*")] == ["box-1"]


def test_a_network_set_up_inside_is_there_again(live_env: LiveEnv, eager: bool) -> None:
    setup = "ip addr add 10.1.2.3/24 dev lo && ip route add 224.0.0.0/4 dev lo && ip rule add from 10.1.2.3 table 7"
    setting = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    server = f"exec {sys.executable} -u -m http.server -b 10.1.2.3 8000"
    live_env.command("server", f"{setup} && echo 80 > {setting} && {server}", privileged=True)
    assert eventually(lambda: any("Serving" in line for line in log_lines(live_env, "server")))
    saved = live_env.save("server")
    live_env.restore(saved.snapshot, "again", eager=eager)
    look = "import urllib.request as r; assert r.urlopen('http://10.1.2.3:8000/').status == 200"
    assert live_env.exec("again", sys.executable, "-c", look) == 0
    for command in (f"grep -qx 80 {setting}", "ip route | grep -q ^224", "ip rule | grep -q 10.1.2.3"):
        assert live_env.exec("again", "sh", "-c", command) == 0, command
    assert live_env.save("again", verify=True).verified


def test_what_lies_in_dev_is_there_again(live_env: LiveEnv, eager: bool) -> None:
    inside = (
        "mkdir /dev/own; echo kept > /dev/own/file; ln -s own/file /dev/link; mkfifo /dev/fifo; exec 5<>/dev/own/file"
    )
    live_env.command(
        "files",
        f"{inside}; mkdir /dev/own2 && mount -t tmpfs none /dev/own2 && echo there > /dev/own2/in && echo made; "
        "exec sleep 1000",
        privileged=True,
    )
    assert eventually(lambda: "made" in log_lines(live_env, "files"))
    saved = live_env.save("files")
    live_env.restore(saved.snapshot, "again", eager=eager)
    for command in (
        "grep -q there /dev/own2/in",
        "grep -q kept /dev/link",
        "test -p /dev/fifo",
        "test -c /dev/null",
        "test -d /dev/pts",
    ):
        assert live_env.exec("again", "sh", "-c", command) == 0, command
    assert live_env.exec("again", "sh", "-c", "cat /dev/null > /dev/own/file && ! test -s /dev/link") == 0


# It ends as soon as it sees that more than a second went by: at once, where it is restored later.
LEAPS = "import time, sys\nlast = now = time.time()\nwhile now - last < 1: last, now = now, time.time()\nsys.exit(3)"


def test_a_program_that_ends_as_it_is_restored_is_told_from_a_failed_restore(live_env: LiveEnv, eager: bool) -> None:
    live_env.python("leaps", LEAPS)
    saved = live_env.save("leaps")
    assert eventually(lambda: time.time_ns() > client.describe(live_env.repo, "leaps").created_ns + 2 * 10**9)
    live_env.restore(saved.snapshot, "again", eager=eager)
    assert eventually(lambda: client.describe(live_env.repo, "again").status == "exited")
    assert client.describe(live_env.repo, "again").exit_status == 3


SCHEDULED = """
import ctypes, os, threading, time
libc = ctypes.CDLL(None)
x86 = os.uname().machine == "x86_64"
def show():
    return sorted(os.sched_getaffinity(0)), libc.prctl(30), libc.syscall(252, 1, 0) if x86 else 0
def work():
    time.sleep(10**6)
thread = threading.Thread(target=work, daemon=True); thread.start()
os.sched_setaffinity(thread.native_id, [max(os.sched_getaffinity(0))])
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
libc.prctl(29, 123456)
x86 and libc.syscall(251, 1, 0, 3 << 13)
wanted = (show(), sorted(os.sched_getaffinity(thread.native_id)))
while True:
    now = (show(), sorted(os.sched_getaffinity(thread.native_id)))
    print("as wanted" if now == wanted else now, flush=True)
    time.sleep(0.1)
"""


def test_processors_io_priority_and_timer_slack_of_each_thread_come_back(live_env: LiveEnv, eager: bool) -> None:
    live_env.python("pinned", SCHEDULED)
    assert eventually(lambda: "as wanted" in log_lines(live_env, "pinned"))
    saved = live_env.save("pinned")
    live_env.restore(saved.snapshot, "again", eager=eager)
    count = len(log_lines(live_env, "again"))
    assert eventually(lambda: len(log_lines(live_env, "again")) > count + 2)
    assert log_lines(live_env, "again")[-1] == "as wanted"


# A timer set for this time tomorrow: how far what is left of it is from that.
TOMORROW = """
import ctypes, socket, time
libc = ctypes.CDLL(None, use_errno=True)
due = int(time.time()) + 86400
fd = libc.timerfd_create(0, 0)
assert libc.timerfd_settime(fd, 1, (ctypes.c_long * 4)(0, 0, due, 0), None) == 0
unread = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); unread.bind(("127.0.0.1", 5353))
unread.sendto(b"not read", ("127.0.0.1", 5353))
while True:
    now, left = time.time(), (ctypes.c_long * 4)()
    libc.timerfd_gettime(fd, left)
    print("late by", left[2] + left[3] / 1e9 - (due - now), flush=True)
    time.sleep(0.05)
"""


def test_a_timer_of_the_time_of_day_is_due_when_it_was_and_unread_datagrams_are_warned_of(live_env: LiveEnv) -> None:
    """As late as the freeze and the restore take, in whole seconds, not as the program was stored."""
    live_env.python("tomorrow", TOMORROW)
    assert eventually(lambda: any("late" in line for line in log_lines(live_env, "tomorrow")))
    saved = live_env.save("tomorrow")
    assert ["port 5353" in text for text in saved.warnings if "datagrams" in text] == [True]
    frozen = time.time()
    assert eventually(lambda: time.time() > frozen + 5)
    began = time.monotonic()
    live_env.restore(saved.snapshot, "again")
    took = time.monotonic() - began
    count = len(log_lines(live_env, "again"))
    assert eventually(lambda: len(log_lines(live_env, "again")) > count + 2)
    late = float(log_lines(live_env, "again")[-2].split()[-1])
    assert -0.5 < late < saved.frozen_s + took + 1.5


# Each of three threads is notified by a timer of its own, and checks that nobody else is.
NOTIFIED = """
import ctypes, signal, threading, time
libc = ctypes.CDLL(None, use_errno=True)
class SigEvent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("number", ctypes.c_int), ("notify", ctypes.c_int),
                ("thread", ctypes.c_int), ("rest", ctypes.c_int * 11)]
def work(number):
    wanted = {signal.SIGRTMIN + 1 + number}
    signal.pthread_sigmask(signal.SIG_BLOCK, range(signal.SIGRTMIN, signal.SIGRTMIN + 5))
    timer, event = ctypes.c_void_p(), SigEvent(None, *wanted, 4, threading.get_native_id())
    assert libc.timer_create(1, ctypes.byref(event), ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 20_000_000, 0, 20_000_000), None) == 0
    while True:
        found = signal.sigtimedwait(range(signal.SIGRTMIN, signal.SIGRTMIN + 5), 30)
        counts[number] += 1 if found is not None and found.si_signo in wanted else -10**6
counts = [0, 0, 0]
for number in (1, 2): threading.Thread(target=work, args=(number,), daemon=True).start()
def say():
    while True:
        before = list(counts)
        while not all(now > was + 3 for now, was in zip(counts, before)) and min(counts) >= 0: time.sleep(0.01)
        print("right" if min(counts) > 0 else "wrong", flush=True)
threading.Thread(target=say, daemon=True).start()
work(0)
"""


def test_each_thread_that_a_timer_notifies_is_notified_again(live_env: LiveEnv, eager: bool) -> None:
    live_env.python("notified", NOTIFIED)
    assert eventually(lambda: "right" in log_lines(live_env, "notified"))
    saved = live_env.save("notified", verify=True)
    assert saved.verified
    live_env.restore(saved.snapshot, "again", eager=eager)
    for name in ("again", "notified"):
        count = len(log_lines(live_env, name))
        assert eventually(lambda: len(log_lines(live_env, name)) > count + 2)  # noqa: B023
        assert "wrong" not in log_lines(live_env, name)


WATCHES = """
import mmap, os, time
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page.madvise(18)  # MADV_WIPEONFORK: how BoringSSL and AWS-LC notice that they were forked
page[:4] = b"kept"
print("ready", flush=True)
while True:
    if os.path.exists("/tmp/look"):
        os.unlink("/tmp/look")
        with open("/tmp/part", "w") as file: file.write(page[:4].decode().strip(chr(0)) or "empty")
        os.rename("/tmp/part", "/tmp/seen")
    time.sleep(0.02)
"""


def test_memory_to_be_wiped_in_forks_is_empty_in_copies_and_as_it_was_in_place(live_env: LiveEnv, eager: bool) -> None:
    live_env.python("watches", WATCHES)
    assert eventually(lambda: "ready" in log_lines(live_env, "watches"))
    saved = live_env.save("watches")
    live_env.restore(saved.snapshot, "beside", eager=eager)
    live_env.restore(saved.snapshot, "alike", same_random=True, eager=eager)
    with client.connect(live_env.repo, "watches") as keeper:
        keeper.restore(saved.snapshot, eager=eager)
    for name, wanted in (("beside", "empty"), ("alike", "kept"), ("watches", "kept")):
        assert live_env.exec(name, "touch", "/tmp/look") == 0
        seen = live_env.upper(name) / "tmp/seen"
        assert eventually(seen.exists)
        assert seen.read_text() == wanted, name


def test_kernels_that_know_nothing_of_ijfs_draw_numbers_of_their_own_as_copies(live_env: LiveEnv) -> None:
    kernel = live_env.kernel("kernel")
    kernel.run("import numpy, random, ssl; random.seed(7); numpy.random.seed(7); ssl.RAND_bytes(8)")
    snapshot = live_env.save("kernel").snapshot
    names = [info.name for info in client.fork(live_env.repo, "kernel", count=2)]
    live_env.restore(snapshot, "alike", same_random=True)
    with client.connect(live_env.repo, "kernel") as keeper:
        keeper.restore(snapshot)
    draw = "print(random.getrandbits(64), numpy.random.randint(1 << 60), ssl.RAND_bytes(8).hex())"
    drawn = {
        name: live_env.talk(client.describe(live_env.repo, name)).run(draw).split()
        for name in (*names, "alike", "kernel")
    }
    assert drawn["alike"] == drawn["kernel"], "going back in place is exact"
    for numbers in zip(*(drawn[name] for name in (*names, "kernel")), strict=True):
        assert len(set(numbers)) == 3, drawn


DRAWS = """
import os, random, ssl, time
import ijfs
random.seed(7); ssl.RAND_bytes(8)
own = random.Random(7)
state = own.getstate()
def draw():
    own.setstate(state)
    with open("/tmp/drawn", "w") as file:
        file.write(f"{random.getrandbits(64)} {ssl.RAND_bytes(8).hex()} {own.getrandbits(64)}")
    os.rename("/tmp/drawn", "/tmp/numbers")
ijfs.after_restore(draw)
print("ready", flush=True)
time.sleep(10**6)
"""


def test_copies_draw_random_numbers_of_their_own_unless_they_shall_not(live_env: LiveEnv) -> None:
    live_env.python("draws", DRAWS)
    assert eventually(lambda: "ready" in log_lines(live_env, "draws"))
    saved = live_env.save("draws")

    def drawn(name: str) -> list[str]:
        path = live_env.upper(name) / "tmp/numbers"
        assert eventually(path.exists)
        return path.read_text().split()

    for name in ("one", "two"):
        live_env.restore(saved.snapshot, name)
    for name in ("same", "alike"):
        live_env.restore(saved.snapshot, name, same_random=True)
    with client.connect(live_env.repo, "draws") as keeper:
        keeper.restore(saved.snapshot)
    assert drawn("same") == drawn("alike") == drawn("draws"), "going back in place is exact"
    ours, theirs, kept = drawn("one"), drawn("two"), drawn("same")
    for number in (0, 1):
        assert len({ours[number], theirs[number], kept[number]}) == 3
    assert ours[2] == theirs[2] == kept[2], "a generator that the program made itself goes on as it was"
