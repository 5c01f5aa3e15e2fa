"""What a program sees and may do in its sandbox, and what of it comes back: files, volumes, network, ports."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.errors import CommandError
from ijfs.live.model.records import InstanceSpec
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

IDLE = "while true; do sleep 0.05; done"


def said(live_env: LiveEnv, name: str) -> str:
    return Path(client.describe(live_env.repo, name).log).read_text()


def inside(live_env: LiveEnv, name: str, script: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What a script prints in an instance."""
    capfd.readouterr()
    assert live_env.exec(name, "sh", "-c", script) == 0
    return capfd.readouterr().out.strip()


def test_a_program_has_namespaces_of_its_own(live_env: LiveEnv, capfd: pytest.CaptureFixture[str]) -> None:
    info = live_env.command("alone", IDLE)
    assert inside(live_env, "alone", "echo $$ $(cat /proc/1/comm)", capfd).endswith("tini")
    for kind in ("pid", "net", "mnt", "ipc", "uts"):
        assert os.stat(f"/proc/{info.pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
    assert inside(live_env, "alone", "cat /proc/net/dev | grep -c :", capfd) == "1"
    assert inside(live_env, "alone", "ls /run", capfd) == "ijfs"
    assert f"{live_env.repo}" not in Path("/proc/self/mountinfo").read_text()


def test_a_program_has_no_descriptor_but_its_streams(live_env: LiveEnv, capfd: pytest.CaptureFixture[str]) -> None:
    live_env.command("bare", IDLE)
    assert inside(live_env, "bare", "ls /proc/1/fd", capfd).split() == ["0", "1", "2"]


def test_a_program_ignores_no_signal_that_its_keeper_ignores(live_env: LiveEnv) -> None:
    live_env.command("heeds", "grep SigIgn /proc/self/status > /root/new; mv /root/new /root/ignored; sleep 60")
    ignored = live_env.upper("heeds") / "root/ignored"
    assert eventually(ignored.exists)
    assert int(ignored.read_text().split()[1], 16) == 0


def test_a_program_heeds_also_the_signals_that_the_c_library_keeps_to_itself() -> None:
    """Whoever starts us may have signal 32 ignored, and glibc lets no program change that: seen on one machine."""
    script = """if True:
        import ctypes, pathlib, re, signal
        from ijfs.live.process import syscalls
        from ijfs.live.sandbox import init, namespaces
        ignored = lambda: int(re.search(r"SigIgn:\\s*(\\w+)", pathlib.Path("/proc/self/status").read_text())[1], 16)
        action = ctypes.create_string_buffer((1).to_bytes(8, "little"), 32)  # SIG_IGN
        for number in (signal.SIGINT, 32, 33, 64):
            namespaces.syscall(syscalls.number("rt_sigaction"), number, ctypes.addressof(action), 0, 8)
        print(f"{ignored():x}")
        init.heed_signals()
        print(ignored())
    """
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert int(shown[0], 16) & 0x8000000180000002 == 0x8000000180000002
    assert shown[1] == "0"


def test_exec_passes_streams_environment_directory_and_exit_status(
    live_env: LiveEnv, capfd: pytest.CaptureFixture[str]
) -> None:
    live_env.command("host", IDLE, env={"COLOUR": "blue"}, cwd="/usr")
    assert inside(live_env, "host", "pwd; echo $COLOUR", capfd) == "/usr\nblue"
    assert client.exec_command(live_env.repo, "host", ["sh", "-c", "test $A = b && exit 7"], env={"A": "b"}) == 7
    assert client.exec_command(live_env.repo, "host", ["sh", "-c", "kill -9 $$"]) == 137
    assert client.exec_command(live_env.repo, "host", ["no-such-program"]) == 127
    assert client.exec_command(live_env.repo, "host", ["pwd"], cwd="/no/such/place") != 0


def test_an_environment_that_is_no_text_or_long_reaches_the_program(
    live_env: LiveEnv, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IJFS_ODD", os.fsdecode(b"\xff\xfe=1"))
    monkeypatch.setenv("IJFS_LONG_1", "x" * 100_000)
    monkeypatch.setenv("IJFS_LONG_2", "y" * 100_000)
    live_env.command("odd", IDLE)
    assert inside(live_env, "odd", 'printf %s "$IJFS_ODD" | od -An -tx1; echo $IJFS_LONG_1 | wc -c', capfd).split() == [
        *("ff", "fe", "3d", "31"),
        "100001",
    ]
    live_env.restore(live_env.save("odd").snapshot, "again")
    assert inside(live_env, "again", 'printf %s "$IJFS_ODD" | od -An -tx1', capfd).split() == ["ff", "fe", "3d", "31"]


def test_arguments_that_no_record_can_hold_are_refused(live_env: LiveEnv) -> None:
    with pytest.raises(CommandError, match="not UTF-8"):
        live_env.command("odd", os.fsdecode(b"echo \xff"))
    assert client.list_instances(live_env.repo) == []


def test_a_program_found_through_a_link_under_tmp_is_seen_there(live_env: LiveEnv) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as where:
        real, link = Path(where, "real"), Path(where, "link")
        (real / "bin").mkdir(parents=True)
        (real / "lib").write_text("its library")
        program = real / "bin/program"
        program.write_text('#!/bin/sh\ncat "${0%/bin/*}/lib"; exec sleep 600\n')
        program.chmod(0o755)
        link.symlink_to(real)
        client.start(live_env.repo, InstanceSpec(name="linked", argv=(f"{link}/bin/program",), cwd="/"))
        assert eventually(lambda: said(live_env, "linked") == "its library")
        live_env.restore(live_env.save("linked").snapshot, "again")
        assert said(live_env, "again") == "its library"


def test_the_hosts_files_are_seen_and_never_changed(live_env: LiveEnv, capfd: pytest.CaptureFixture[str]) -> None:
    before = Path("/etc/hostname").read_bytes()
    live_env.command("writer", IDLE)
    script = "echo changed > /etc/hostname; rm /etc/issue; mkdir /usr/share/new; echo x > /usr/share/new/file"
    inside(live_env, "writer", script, capfd)
    assert inside(live_env, "writer", "cat /etc/hostname; ls /etc/issue 2>&1 | tail -c 10", capfd).startswith("changed")
    assert Path("/etc/hostname").read_bytes() == before
    assert Path("/etc/issue").exists()
    assert not Path("/usr/share/new").exists()


def test_files_deletions_links_and_attributes_come_back(live_env: LiveEnv, capfd: pytest.CaptureFixture[str]) -> None:
    live_env.command("files", IDLE)
    script = """
    cd /root; mkdir -p tree/deep; echo one > tree/one; ln tree/one tree/deep/same; ln -s one tree/pointer
    mkfifo tree/pipe; chmod 4751 tree/one; chown 12:34 tree/deep; touch -d 2001-02-03 tree/deep/same
    rm /etc/issue; rm -r /usr/share/doc/tini; mkdir /usr/share/doc/tini; echo mine > /usr/share/doc/tini/mine
    truncate -s 1G tree/sparse; echo end >> tree/sparse; echo shared > /dev/shm/shared
    """
    inside(live_env, "files", script, capfd)
    look = """
    cd /root/tree; stat -c '%n %a %u:%g %h %s %F %Y' one deep deep/same pipe sparse; readlink pointer
    ls /etc/issue /usr/share/doc/tini 2>&1; tail -c 4 sparse; cat /dev/shm/shared
    [ one -ef deep/same ] && echo linked; du sparse | cut -f1
    """
    before = inside(live_env, "files", look, capfd)
    assert "linked" in before
    snapshot = live_env.save("files").snapshot
    live_env.restore(snapshot, "again")
    after = inside(live_env, "again", look, capfd)
    assert after.splitlines()[:-1] == before.splitlines()[:-1]
    assert "cannot access '/etc/issue'" in after
    assert "mine" in after


def test_a_second_save_reads_only_what_changed_and_misses_no_write_through_a_mapping(live_env: LiveEnv) -> None:
    code = """
import mmap, os, time
open("/root/large", "wb").write(os.urandom(4 << 20)); open("/root/same", "wb").write(os.urandom(4 << 20))
file = open("/root/large", "r+b"); view = mmap.mmap(file.fileno(), 0); view[:5] = b"first"
time.sleep(0.1); print("ready", flush=True)
while not os.path.exists("/tmp/go"): time.sleep(0.02)
view[:6] = b"second"; print("done", flush=True)
while True: time.sleep(1)
"""
    live_env.python("mapper", code)
    assert eventually(lambda: "ready" in said(live_env, "mapper"))
    time.sleep(0.1)
    live_env.save("mapper", "first")
    live_env.exec("mapper", "touch", "/tmp/go")
    assert eventually(lambda: "done" in said(live_env, "mapper"))
    second = live_env.save("mapper", "second")
    with Repository.open(live_env.repo) as repository:
        reader = repository.reader()
        root = repository.snapshot(bytes.fromhex(second.snapshot)).root
        assert reader.open(reader.lookup(root, "files/root/large")).read(0, 6) == b"second"
        same = reader.open(reader.lookup(root, "files/root/same"))
        assert same.read(0, same.size) == (live_env.upper("mapper") / "root/same").read_bytes()


def test_a_working_directory_below_tmp_is_shown_and_its_files_are_saved(
    live_env: LiveEnv, capfd: pytest.CaptureFixture[str]
) -> None:
    (live_env.work / "input").write_text("from the host")
    live_env.command("local", f"cat input > output; {IDLE}", cwd=str(live_env.work))
    assert eventually(lambda: inside(live_env, "local", "cat output || true", capfd) == "from the host")
    assert not (live_env.work / "output").exists()
    snapshot = live_env.save("local").snapshot
    with Repository.open(live_env.repo) as repository:
        reader = repository.reader()
        root = repository.snapshot(bytes.fromhex(snapshot)).root
        entry = reader.lookup(root, f"files{live_env.work}/output")
        assert reader.open(entry).read(0, entry.size) == b"from the host"
    live_env.restore(snapshot, "there")
    assert inside(live_env, "there", "pwd; cat output input", capfd) == f"{live_env.work}\nfrom the hostfrom the host"


def is_unmounted(directory: Path) -> bool:
    """Unmount; the kernel takes a sandbox's mounts apart a little after its last process."""
    subprocess.run(["umount", directory], check=False, stderr=subprocess.DEVNULL)
    return not directory.is_mount()


@pytest.fixture
def other_disk(live_machine: None) -> Iterator[Path]:
    """A filesystem of its own on the host: ext4 in a file, mounted."""
    directory = Path("/mnt") / f"ijfs-test-{os.getpid()}"
    image = directory.with_suffix(".img")
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, directory], check=False).returncode:
        shutil.rmtree(directory)
        image.unlink()
        pytest.skip("no loop devices here")
    (directory / "data").write_text("on the disk")
    yield directory
    assert eventually(lambda: is_unmounted(directory))
    directory.rmdir()
    image.unlink()


def test_a_disk_of_its_own_on_the_host_is_seen_written_to_and_comes_back_without_the_disk(
    other_disk: Path, live_env: LiveEnv, capfd: pytest.CaptureFixture[str]
) -> None:
    live_env.command("disks", IDLE)
    inside(live_env, "disks", f"echo ' and more' >> {other_disk}/data; echo new > {other_disk}/new", capfd)
    assert (other_disk / "data").read_text() == "on the disk"
    snapshot = live_env.save("disks").snapshot
    look = f"cat {other_disk}/data {other_disk}/new"
    live_env.restore(snapshot, "with")
    assert inside(live_env, "with", look, capfd) == "on the disk and more\nnew"
    assert inside(live_env, "disks", look, capfd) == "on the disk and more\nnew"
    for name in ("disks", "with"):
        live_env.stop(name)
    assert eventually(lambda: is_unmounted(other_disk))
    live_env.restore(snapshot, "without")
    assert inside(live_env, "without", look, capfd) == "on the disk and more\nnew"


def test_ports_are_the_same_inside_and_different_outside(live_env: LiveEnv) -> None:
    code = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(open("/tmp/who").read().encode())
    def log_message(self, *args): pass
open("/tmp/who", "w").write("first")
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
    first = live_env.python("web", code, ports=(8000,))

    def get(port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=patient(20)) as answer:
            return str(answer.read().decode())

    assert eventually(lambda: _answers(first.relay[0].host))
    snapshot = live_env.save("web").snapshot
    second = live_env.restore(snapshot, "web2")
    live_env.exec("web2", "sh", "-c", "echo -n second > /tmp/who")
    assert (first.relay[0].inside, second.relay[0].inside) == (8000, 8000)
    assert (get(first.relay[0].host), get(second.relay[0].host)) == ("first", "second")


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
            return True
    except OSError:
        return False


def test_a_chatty_connection_loses_nothing_in_a_save(live_env: LiveEnv) -> None:
    code = """
import socket
listener = socket.create_server(("127.0.0.1", 7000)); print("up", flush=True); peer, _ = listener.accept()
for number in range(60000): peer.sendall(b"%d\\n" % number)
peer.close(); listener.accept()
"""
    info = live_env.python("chatty", code, ports=(7000,))
    assert eventually(lambda: "up" in said(live_env, "chatty"))
    with socket.create_connection(("127.0.0.1", info.relay[0].host)) as sock, sock.makefile("rb") as lines:
        heard = [int(next(lines)) for _ in range(100)]
        for _ in range(4):
            live_env.save("chatty")
            heard += [int(next(lines)) for _ in range(2000)]
        heard += [int(line) for line in lines]
    assert heard == list(range(60000))


@pytest.mark.parametrize(
    ("what", "code", "done"),
    [
        ("a sleep", "time.sleep(3)", "slept"),
        ("a loop that prints", "for n in range(150): print('line', n, flush=True); time.sleep(0.02)", "line 149"),
        ("a busy loop", "end = time.monotonic() + 3\nwhile time.monotonic() < end: pass", "slept"),
    ],
)
def test_a_save_in_the_middle_of(what: str, code: str, done: str, live_env: LiveEnv) -> None:
    live_env.python(
        "middle", f"import time\nprint('begun', flush=True)\n{code}\nprint('slept', flush=True)\ntime.sleep(1000)"
    )
    assert eventually(lambda: "begun" in said(live_env, "middle"))
    time.sleep(0.2)
    snapshot = live_env.save("middle").snapshot
    assert "slept" not in said(live_env, "middle")
    live_env.restore(snapshot, "left")
    live_env.restore(snapshot, "right")
    for name in ("middle", "left", "right"):
        assert eventually(lambda name=name: "slept" in said(live_env, name)), name
        lines = said(live_env, name).split()
        assert lines.count("begun") == lines.count("slept") == 1
        assert done in said(live_env, name)


def test_a_sandbox_has_no_way_out_unless_it_is_given_one(live_env: LiveEnv, capfd: pytest.CaptureFixture[str]) -> None:
    code = 'import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(("10.0.2.2", 9)))'
    try_it = f"{sys.executable} -c '{code}'"
    live_env.command("closed", IDLE)
    assert inside(live_env, "closed", try_it, capfd) == "101"  # ENETUNREACH


@pytest.mark.skipif(not shutil.which("slirp4netns"), reason="slirp4netns is not installed")
def test_slirp4netns_gives_a_way_out_that_a_restored_program_has_too(
    live_env: LiveEnv, capfd: pytest.CaptureFixture[str]
) -> None:
    address = _own_address()
    if address is None:
        pytest.skip("this machine has no address but its loopback's")
    with socket.create_server((address, 0)) as server:
        server.settimeout(10)
        port = server.getsockname()[1]
        script = (
            f'{sys.executable} -c \'import socket; socket.create_connection(("{address}", {port}), 5).sendall(b"out")\''
        )
        live_env.command("open", IDLE, network="slirp4netns")
        snapshot = live_env.save("open").snapshot
        live_env.restore(snapshot, "open2")
        for name in ("open", "open2"):
            assert live_env.exec(name, "sh", "-c", script) == 0
            connection, _ = server.accept()
            with connection:
                assert connection.recv(3) == b"out"
            assert inside(live_env, name, "cat /etc/resolv.conf", capfd) == "nameserver 10.0.2.3"


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(sock.getsockname()[0])
    return None if address.startswith("127.") else address


def test_what_is_known_of_an_instance_is_shown_and_no_secret_is_in_it(live_env: LiveEnv) -> None:
    live_env.command("shown", IDLE, env={"TOKEN": "s3cret"})
    (info,) = client.list_instances(live_env.repo)
    assert (info.name, info.status, info.keeper_running, info.memory) == ("shown", "running", True, 1.0)
    assert "s3cret" not in json.dumps(str(info))
    live = live_env.repo / "live" / "shown"
    assert live.stat().st_mode & 0o777 == 0o700
    assert (live / "instance.json").stat().st_mode & 0o777 == 0o600
    assert (live / "control.sock").stat().st_mode & 0o777 == 0o600
