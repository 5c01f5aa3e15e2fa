"""What root in a sandbox cannot do to the machine, and what it can: each row of the table in docs/security.md.

One program tries everything that `ATTACKS` has, in its sandbox; its copies and restored twins have the same rights.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.sandbox import rights

PAGE = Path(__file__).parents[2] / "docs" / "security.md"

REFUSED, PERMITTED = "refused", "works"

# Each is a statement that raises OSError (or leaves with a status that is not 0) where it is refused. None of them
# would do harm if it were not: what is written is what is there, what is mounted is the sandbox's own.
ATTACKS = {
    "load a kernel module": "call('finit_module', memfd, b'', 0)",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "restart the machine": "call('reboot', 0xfee1dead, 672274793, 0x89ABCDEF, 0)",
    "reach ports of the hardware": "call('iopl', 3)",
    "make a device node of the machine's disk": "os.mknod('/tmp/disk', 0o60600, disk)",
    "mount a file system": "mount(b'none', b'/mnt', b'tmpfs', 0)",
    "mount control groups": "mount(b'none', b'/mnt', b'cgroup2', 0)",
    "make /proc/sys writable": "mount(b'none', b'/proc/sys', b'', 4096 | 32)",
    "change a setting of the kernel": "rewrite('/proc/sys/vm/swappiness')",
    "change a device's setting in /sys": "os.access('/sys/kernel/profiling', os.W_OK) or refuse()",
    "open a file of the machine by its handle": "call('open_by_handle_at', os.open('/', 0), bytes([8, *bytes(15)]), 0)",
    "read the kernel's log": "call('syslog', 10, 0, 0)",
    "load a BPF program": "call('bpf', 0, bytes(128), 128)",
    "make a namespace": "call('unshare', 0x20000)",
    "make a user namespace, in which it has all rights": "call('unshare', 0x10000000)",
    "start a process in a user namespace": "call('clone', 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)",
    "read keys that the kernel keeps for the machine's root": "call('keyctl', 0, -4, 0)",
    "gain rights by a program that is set-uid": "gain()",
    "see a process of the machine": "len(os.listdir('/proc')) < 1 or host_visible()",
    "reach the machine's loopback": "socket.create_connection(('127.0.0.1', listening), 5)",
    "take more processes than the limit": "forks()",
    "change a file of the machine": "changed()",
    "read a file of the machine that root may read": "open('/etc/shadow').read()",
    "listen to packets of its own network": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "become another user": "subprocess.run([sys.executable, '-c', 'import os; os.setuid(1000)'], check=True)",
    "trace its own processes": "traced()",
}

PREPARED = """
import ctypes, json, os, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
numbers = {"finit_module": 313, "reboot": 169, "iopl": 172, "open_by_handle_at": 304, "syslog": 103, "bpf": 321,
           "unshare": 272, "ptrace": 101, "clone": 56, "keyctl": 250}
disk, listening, host_pid = %(disk)d, %(listening)d, %(host_pid)d
memfd = os.memfd_create("module")

def refuse(why="refused"):
    raise OSError(why)

def checked(result):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

def call(name, *arguments):
    checked(libc.syscall(numbers[name], *arguments))

def mount(source, target, kind, flags):
    checked(libc.mount(source, target, kind, flags, None))

def rewrite(path):
    text = open(path).read()
    open(path, "w").write(text)

def gain():
    os.chmod("/tmp/set-uid", 0o4755)
    code = "import os; os.setuid(1000); os.execv('/tmp/set-uid', ['/tmp/set-uid', '-u'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.stdout.strip() != "0":
        refuse()

def host_visible():
    if not os.path.exists(f"/proc/{host_pid}"):
        refuse()

def forks():
    made = []
    try:
        while len(made) < 100:
            made.append(os.fork() or time.sleep(100))
    finally:
        for pid in made:
            os.kill(pid, 9)
            os.waitpid(pid, 0)

def changed():
    with open("%(victim)s", "w") as file:
        file.write("changed")
    refuse("it is the sandbox's own")

def traced():
    child = os.fork() or time.sleep(100)
    try:
        checked(libc.ptrace(0x4206, child, 0, 0))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
"""

TRY = """
found = {}
for name, attack in attacks.items():
    try:
        exec(attack)
        found[name] = "works"
    except (OSError, subprocess.CalledProcessError):
        found[name] = "refused"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def program(shared_env: LiveEnv) -> str:
    """A program that waits, with a copy of `id` that is about to be set-uid."""
    shared_env.command(
        "subject", "cp /usr/bin/id /tmp/set-uid; touch /tmp/ready; exec sleep 1000", limits=client.Limits(pids=40)
    )
    assert eventually((shared_env.upper("subject") / "tmp/ready").exists)
    return "subject"


def rows() -> dict[str, str]:
    """The table: what was tried, and what came of it."""
    table = PAGE.read_text().split("### What was tried", 1)[1].split("\n\n")[1]
    found = re.findall(r"^\| (.+?) \| (refused|works)\b", table, re.MULTILINE)
    return dict(found)


def inside(env: LiveEnv, name: str, script: str) -> str:
    line = client.exec_line(env.repo, name, [sys.executable, "-c", script])
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=120).stdout


def test_every_attack_of_the_page_comes_out_as_it_says(shared_env: LiveEnv, program: str, tmp_path: Path) -> None:
    import socket

    victim = tmp_path / "victim"
    victim.write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {
            "disk": os.makedev(8, 0),
            "listening": server.getsockname()[1],
            "host_pid": os.getpid(),
            "victim": victim,
        }
        script = PREPARED % values + f"attacks = {ATTACKS!r}\n" + TRY
        found = json.loads(inside(shared_env, program, script))
    assert rows() == found
    assert victim.read_text() == "as it was"


def test_copies_have_the_rights_of_the_original_and_no_more(shared_env: LiveEnv, program: str) -> None:
    info = client.describe(shared_env.repo, program)
    assert info.pid is not None
    had = rights.of(info.pid)
    assert had == rights.of_a_sandbox()
    snapshot = shared_env.save(program).snapshot
    copies = [shared_env.restore(snapshot, "lazy"), shared_env.restore(snapshot, "eager", eager=True)]
    copies.append(shared_env.restore(snapshot, program, replace=True))
    for copy in copies:
        assert copy.pid is not None
        assert rights.of(copy.pid) == had
        assert "Read-only" in inside(
            shared_env, copy.name, "try: open('/proc/sys/vm/swappiness', 'w')\nexcept OSError as e: print(e)"
        )


def test_a_privileged_program_has_all_rights(shared_env: LiveEnv) -> None:
    shared_env.command("root", "exec sleep 1000", privileged=True)
    info = client.describe(shared_env.repo, "root")
    assert info.pid is not None
    assert rights.of(info.pid) == rights.of()
    assert inside(shared_env, "root", "import os; os.mknod('/tmp/node', 0o20600, os.makedev(1, 3)); print('made')")
