"""Users without root: their own `ijfs` has programs run and saved by a server of root, as themselves."""

from __future__ import annotations

import grp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.live_env import LiveEnv
from serve.conftest import COMMAND
from waiting import eventually, patient

from ijfs.cli.callers import ALLOWED, LENGTH, VARIABLE
from ijfs.live.checks.privilege import may_save_other_users
from ijfs.live.process import fork_request

pytestmark = [pytest.mark.root, pytest.mark.criu]

CALL = """
import os, sys
from ijfs.cli import callers, failure, main
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
main.main(sys.argv[3:])
"""
"""`ijfs` of a user who may not look into this checkout, wherever it is: it is loaded before."""
ALICE, BOB, CAROL = 20001, 20002, 20003
"""Numbers that have no name: nothing on this machine is theirs."""


class User:
    """Somebody with a group and no root, and what their `ijfs` says."""

    def __init__(self, uid: int, group: int, socket: Path, home: Path) -> None:
        self.uid, self._group, self.home = uid, group, home
        self._env = {"PATH": os.environ["PATH"], "HOME": str(home), VARIABLE: str(socket), "SECRET": f"of {uid}"}

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A call that goes on."""
        return subprocess.Popen(
            [sys.executable, "-P", "-c", CALL, str(self.uid), str(self._group), *argv],
            env=self._env,
            cwd=self.home,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        """Its exit code, what it said, and what was wrong."""
        process = self.start(*argv)
        out, err = process.communicate(timeout=patient(60))
        return process.returncode, out, err


@pytest.fixture(scope="module")
def socket_path(live_env: LiveEnv) -> Iterator[Path]:
    """A server that the group `nogroup` may call."""
    place = Path(tempfile.mkdtemp(prefix="ijfs-users-"))
    place.chmod(0o711)
    path = place / "socket"
    line = [*COMMAND, "--port", "0", "--users", "nogroup", "--users-socket", str(path), "--users-dir", str(place / "r")]
    line += ["--user-programs", "3", "--user-calls", "4", "--pids", "77"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("serving")
        yield path
        for repo in (place / "r").iterdir():
            if repo.is_dir():
                subprocess.run([*COMMAND[:-1], "-r", str(repo), "stop", "-qa", "--rm", "--timeout", "0"], check=True)
                fork_request.dismiss(repo)
        server.terminate()
        assert server.wait(patient(20)) == 0
        assert server.stderr.read() == ""
    assert not path.exists()
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def alice(socket_path: Path) -> User:
    """With a home directory that nobody else may look into."""
    return user(ALICE, socket_path)


def user(uid: int, socket_path: Path) -> User:
    """A user with a home."""
    home = socket_path.parent / f"home-{uid}"
    home.mkdir()
    (home / "note").write_text("hers\n")
    for path in (home, home / "note"):
        os.chown(path, uid, grp.getgrnam("nogroup").gr_gid)
        path.chmod(0o700)
    return User(uid, grp.getgrnam("nogroup").gr_gid, socket_path, home)


def test_her_program_runs_as_her(alice: User) -> None:
    """In her directory, with her variables and files, and with no more rights than she has."""
    script = 'id -u; pwd; echo "$SECRET"; cat note; echo new > made; cat /etc/shadow || exec sleep 1000'
    code, _, err = alice("run", "--name", "hers", "--", "sh", "-c", script)
    assert code == 0, err
    assert eventually(lambda: "denied" in alice("logs", "hers")[1])
    said = alice("logs", "hers")[1].splitlines()
    assert said[:4] == [str(ALICE), str(alice.home), f"of {ALICE}", "hers"]
    assert alice("exec", "hers", "--", "stat", "-c", "%u", "made")[1] == f"{ALICE}\n"
    assert alice("exec", "hers", "--", "sh", "-c", "id -u; exit 7")[:2] == (7, f"{ALICE}\n")
    (listed,) = json.loads(alice("ps", "--json")[1])["instances"]
    assert (listed["name"], listed["status"]) == ("hers", "running")


def test_it_is_saved_where_root_may(alice: User) -> None:
    """CRIU needs a capability for processes of other users, which not every root has; it is said then."""
    code, out, err = alice("save", "hers", "--json")
    if not may_save_other_users():
        assert code == 12
        assert "CAP_SYS_RESOURCE" in out + err
        return
    assert code == 0
    assert alice("fork", "hers", "-n", "1", "--names", "copy")[0] == 0
    assert alice("exec", "copy", "--", "id", "-u")[1] == f"{ALICE}\n"
    assert alice("restore", "hers", "--name", "hers", "--replace", "--yes")[0] == 0
    assert alice("exec", "hers", "--", "cat", "made")[1] == "new\n"
    assert alice("stop", "--rm", "copy")[0] == 0


def test_others_have_repositories_of_their_own(alice: User, socket_path: Path) -> None:
    bob = user(BOB, socket_path)
    assert json.loads(bob("ps", "--json")[1])["instances"] == []
    code, _, err = bob("exec", "hers", "--", "true")
    assert code == 1
    assert "there is no program `hers`" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--env-file", "/etc/shadow", "true"], "--env-file of `ijfs run` is for root"),
        (["run", "--gpu", "true"], "--gpu of `ijfs run` is for root"),
        (["run", "-p", "0.0.0.0:8000:8000", "true"], "a user may listen at 127.0.0.1"),
        (["run", "-p", "443:8000", "true"], "from port 1024 on"),
        (["save", "hers", "--notebook", "/etc/shadow"], "--notebook of `ijfs save` is for root"),
        (["restore", "hers", "--env-file", "/etc/shadow"], "--env-file of `ijfs restore` is for root"),
    ],
)
def test_what_is_not_done_for_users_is_a_sentence(alice: User, words: list[str], sentence: str) -> None:
    code, _, err = alice(*words)
    assert code == 2
    assert sentence in err


def test_a_stranger_s_call_is_no_way_to_root_s_files(alice: User, socket_path: Path) -> None:
    """What her own `ijfs` would not send: another verb, another repository, no call at all."""
    assert {"import", "export", "cp", "base", "mount", "fsck"} & ALLOWED.keys() == set()
    request = {"argv": ["export", "latest", "/etc"], "cwd": "/", "env": {}}
    assert said_to(socket_path, json.dumps(request).encode())["code"] == 2
    request = {"argv": ["ps", "-r", "/root", "--json"], "cwd": "/", "env": {}}
    assert said_to(socket_path, json.dumps(request).encode())["code"] == 2
    request = {"argv": ["ps"], "cwd": "/", "env": {"PYTHONPATH": "/tmp", "LD_PRELOAD": "/tmp/x.so"}}
    assert said_to(socket_path, json.dumps(request).encode())["code"] == 0
    assert said_to(socket_path, b"[1, 2]")["refused"] == "this is no call of `ijfs`"
    code, out, err = alice("ps", "--json")
    assert code == 0, (out, err)


def said_to(path: Path, body: bytes) -> dict[str, object]:
    """What the server answers to a call of root's, whose streams are nothing."""
    with socket.socket(socket.AF_UNIX) as server, open(os.devnull, "r+b") as nothing:
        server.connect(str(path))
        socket.send_fds(server, [LENGTH.pack(len(body))], [nothing.fileno()] * 3)
        server.sendall(body)
        answer = b"".join(iter(lambda: server.recv(1 << 16), b""))
    told: dict[str, object] = json.loads(answer)
    return told


def test_a_call_that_is_interrupted_or_left_ends(alice: User) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        following = alice.start("logs", "-f", "hers")
        assert following.stdout is not None
        assert following.stdout.readline() == f"{ALICE}\n"
        following.send_signal(number)
        following.communicate(timeout=patient(30))
        assert following.returncode == code
    assert eventually(lambda: not followers())
    assert alice("stop", "--rm", "hers", "--timeout", "0")[0] == 0


def followers() -> list[str]:
    """Processes of root's that still follow a log for her."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if "ijfs.cli.for_user" in line]


def test_a_user_takes_no_more_than_the_server_lets_each(socket_path: Path) -> None:
    carol = user(CAROL, socket_path)
    assert [carol("run", "--name", f"p{n}", "--", "sh", "-c", "echo up; exec sleep 1000")[0] for n in range(3)] == [
        0
    ] * 3
    assert {one["limits"]["pids"] for one in json.loads(carol("ps", "--json")[1])["instances"]} == {77}
    code, _, err = carol("run", "--", "true")
    assert (code, "3 programs of yours are live, and 3 may be at a time" in err) == (2, True), err
    assert carol("stop", "--rm", "-t", "0", "p2")[0] == 0
    code, _, err = carol("fork", "p0", "-n", "2")
    assert (code, "2 programs of yours are live" in err) == (2, True), err
    following = [carol.start("logs", "-f", "p0") for _ in range(4)]
    for one in following:
        assert one.stdout is not None
        assert one.stdout.readline() == "up\n"
    code, _, err = carol("ps")
    assert (code, "4 calls of yours are under way" in err) == (1, True), err
    for one in following:
        one.terminate()
        one.communicate()
    assert eventually(lambda: carol("ps")[0] == 0)
