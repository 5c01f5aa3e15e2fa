"""The forkserver: a loaded process that keepers are forked off. When it serves, when it refuses, when it ends."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from live_env import LiveEnv, is_gone
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.client.connection import KeeperClient
from ijfs.live.errors import KeeperError
from ijfs.live.keeper import forkserver
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.pager.api import PagerProcess
from ijfs.live.process import fork_request, procfs

pytestmark = [pytest.mark.root, pytest.mark.criu]

WRITES = "env > /tmp/env; umask > /tmp/umask; ulimit -n > /tmp/files; touch /tmp/ready; sleep 1000"


def start(live_env: LiveEnv, name: str) -> int:
    """Start a program that writes down what it was given; its keeper's parent."""
    live_env.command(name, WRITES)
    assert eventually(lambda: (live_env.upper(name) / "tmp/ready").exists())
    keeper = read_record(InstancePaths.of(live_env.repo, name)).keeper
    assert keeper is not None
    return parent_of(keeper.pid)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def the_forkserver(live_env: LiveEnv) -> int:
    assert eventually(lambda: fork_request.forkserver_pid(live_env.repo) is not None)
    pid = fork_request.forkserver_pid(live_env.repo)
    assert pid is not None
    return pid


def said(live_env: LiveEnv, name: str, what: str) -> str:
    return (live_env.upper(name) / "tmp" / what).read_text()


def test_the_next_keeper_is_forked_off_the_forkserver_with_the_environment_and_umask_of_its_own_client(
    live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_BEFORE", "1")
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    monkeypatch.delenv("ONLY_BEFORE")
    monkeypatch.setenv("ONLY_NOW", "a\nb é")
    before = os.umask(0o027)
    try:
        assert start(live_env, "second") == waiting
    finally:
        os.umask(before)
    environment = said(live_env, "second", "env")
    assert "ONLY_NOW=a\nb é\n" in environment
    assert "ONLY_BEFORE" not in environment
    assert said(live_env, "second", "umask").strip() == "0027"
    assert fork_request.forkserver_pid(live_env.repo) == waiting


def test_a_restore_off_the_forkserver_is_a_keeper_and_a_pager_of_their_own(live_env: LiveEnv) -> None:
    start(live_env, "first")
    saved = live_env.save("first").snapshot
    waiting = the_forkserver(live_env)
    info = live_env.restore(saved, "again")
    keeper = read_record(InstancePaths.of(live_env.repo, "again")).keeper
    assert keeper is not None
    assert parent_of(keeper.pid) == waiting
    assert os.getsid(keeper.pid) == keeper.pid
    assert procfs.namespace_id(keeper.pid, "mnt") != procfs.namespace_id(waiting, "mnt")
    os.kill(waiting, signal.SIGKILL)
    assert eventually(lambda: is_gone(waiting))
    assert client.describe(live_env.repo, "again").pid == info.pid, "what was forked off it does not need it"
    assert live_env.save("again").parent == saved


def test_the_pager_of_a_keeper_that_goes_back_in_place_is_forked_off_the_forkserver_and_replaced_without_it(
    live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IJFS_FETCH_DELAY_MS", "60")
    check = (
        "import hashlib, os, time\ndata = os.urandom(64 << 20); print(hashlib.sha256(data).hexdigest(), flush=True)\n"
    )
    again = (
        "while not os.path.exists('/tmp/go'): time.sleep(0.02)\nprint(hashlib.sha256(data).hexdigest(), flush=True)\n"
    )
    live_env.python("back", f"{check}{again}time.sleep(600)")
    assert eventually(lambda: len(program_log(live_env)) == 1)
    saved = live_env.save("back").snapshot
    waiting = the_forkserver(live_env)
    live_env.restore(saved, "back", replace=True)
    pager = read_record(InstancePaths.of(live_env.repo, "back")).pager
    assert pager is not None
    assert parent_of(pager.pid) == waiting
    assert os.getsid(pager.pid) == pager.pid
    for pid in (waiting, *children_of(pager.pid), pager.pid):
        os.kill(pid, signal.SIGKILL)
    live_env.exec("back", "touch", "/tmp/go")
    assert eventually(lambda: len(program_log(live_env)) == 2, 30)
    assert len(set(program_log(live_env))) == 1
    with client.connect(live_env.repo, "back") as keeper:
        assert keeper.wait_memory().memory == 1.0


def program_log(live_env: LiveEnv) -> list[str]:
    return Path(client.describe(live_env.repo, "back").log).read_text().split()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_only_a_keeper_that_it_forked_gets_a_pager_of_it(live_env: LiveEnv) -> None:
    start(live_env, "a")
    waiting = the_forkserver(live_env)
    assert PagerProcess.asked(InstancePaths.of(live_env.repo, "a").root) is None
    assert the_forkserver(live_env) == waiting


def test_what_people_are_shown_of_it_is_so(live_env: LiveEnv) -> None:
    assert fork_request.forkserver_info(live_env.repo) is None
    began = time.time_ns()
    start(live_env, "a")
    pid = the_forkserver(live_env)
    shown = fork_request.forkserver_info(live_env.repo)
    assert shown is not None
    assert shown.pid == pid
    assert began - 50_000_000 < shown.since_ns < time.time_ns()
    assert shown.memory is not None
    assert 1 << 20 < shown.memory < 200 << 20


def test_it_has_one_thread_and_no_file_of_the_repository_but_its_socket(live_env: LiveEnv) -> None:
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    assert eventually(lambda: resident(waiting) > 25 << 20), "it loads the rest when what it forked has settled"
    assert len(os.listdir(f"/proc/{waiting}/task")) == 1
    opened = [os.readlink(f"/proc/{waiting}/fd/{fd}") for fd in os.listdir(f"/proc/{waiting}/fd")]
    assert not [path for path in opened if path.startswith(str(live_env.repo))]
    assert stat.S_IMODE(fork_request.address(live_env.repo).stat().st_mode) == 0o600


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_an_answer_of_the_forkserver_another_does_its_work(live_env: LiveEnv, how: int) -> None:
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    os.kill(waiting, how)
    assert start(live_env, "second") != waiting
    os.kill(waiting, signal.SIGCONT) if how == signal.SIGSTOP else None
    assert eventually(lambda: is_gone(waiting)), "a forkserver whose place another took ends"
    assert the_forkserver(live_env) != waiting


def test_it_ends_when_nobody_asks_and_leaves_nothing(live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_request.SETTING, str(patient(4)))  # long enough to be seen
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    assert eventually(lambda: is_gone(waiting))
    assert not fork_request.address(live_env.repo).exists()


def test_none_is_left_where_the_setting_is_zero(live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_request.SETTING, "0")
    start(live_env, "first")
    time.sleep(0.3)
    assert fork_request.forkserver_pid(live_env.repo) is None
    assert not fork_request.address(live_env.repo).exists()


def test_it_ends_when_a_file_it_was_loaded_from_changes(
    live_env: LiveEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    module = site / "sitecustomize.py"
    module.write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    module.write_text("new = True\n")
    assert start(live_env, "second") != waiting
    assert eventually(lambda: is_gone(waiting))


def test_it_ends_with_the_repository(live_env: LiveEnv) -> None:
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    live_env.stop("first")
    shutil.rmtree(live_env.repo / "live")
    assert eventually(lambda: is_gone(waiting))


def test_a_client_of_another_standing_is_not_served(live_env: LiveEnv) -> None:
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert start(live_env, "limited") != waiting
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said(live_env, "limited", "files").strip() == str(soft - 1)


def test_another_user_is_not_served_even_where_the_socket_lets_him_in(live_env: LiveEnv) -> None:
    start(live_env, "first")
    waiting = the_forkserver(live_env)
    path = fork_request.address(live_env.repo)
    path.chmod(0o666)
    script = textwrap.dedent(
        """
        import os, pathlib, sys
        from ijfs.live.process import fork_request
        path = pathlib.Path(sys.argv[1])
        directory = os.open(path.parent, os.O_PATH)
        os.setuid(65534)
        os.geteuid = lambda: 0  # a client that does not look whose socket it is
        print(fork_request.ask(pathlib.Path(f"/proc/self/fd/{directory}/{path.name}"),
        fork_request.EndForkServer()))
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert fork_request.forkserver_pid(live_env.repo) == waiting, "nor did it end, as he had asked"


def test_a_socket_of_another_user_gets_nothing(live_env: LiveEnv, tmp_path: Path) -> None:
    """Root in somebody else's repository: its environment is not for who put a socket there."""
    script = textwrap.dedent(
        """
        import os, socket, sys
        sock = socket.socket(socket.AF_UNIX)
        os.setuid(65534)
        sock.bind(sys.argv[1])
        sock.listen()
        print("ready", flush=True)
        connection, _ = sock.accept()
        print(len(connection.recv(100)), flush=True)
        """
    )
    directory = tmp_path / "theirs"
    directory.mkdir()
    directory.chmod(0o777)
    for parent in list(directory.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    path = directory / fork_request.SOCKET_NAME
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as theirs:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == "ready\n"
        assert not fork_request.ask(path, fork_request.keepers_for([tmp_path], lazy=False))
        assert theirs.stdout.readline() == "0\n"


class Impatient(socket.socket):
    """A client's end at which the time is over when it is first looked, after `meanwhile`."""

    meanwhile: Callable[[], None] | None = None

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if (late := self.meanwhile) is not None:
            self.meanwhile = None
            late()
            raise TimeoutError
        return super().recv(bufsize, flags)


def test_a_machine_that_has_no_process_left_is_said_to_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    (tmp_path / "p").mkdir()
    ours, theirs = socket.socketpair()
    lock = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    monkeypatch.setattr(os, "fork", no_more)
    with ours:
        with pytest.raises(BlockingIOError):
            forkserver._fork_keepers(fork_request.keepers_for([tmp_path / "p"], lazy=False), [theirs.detach(), lock])
        gc.unfreeze()
        with pytest.raises(KeeperError, match="no process could be made for it: Resource temporarily unavailable"):
            KeeperClient(ours, InstancePaths(tmp_path / "p")).status()


class Slow(socket.socket):
    """A client's end of a connection whose other end has taken all, answered and left before `sendmsg` returns."""

    other: socket.socket

    def sendmsg(self, *args: Any) -> int:
        sent = super().sendmsg(*args)
        with self.other:
            _, fds = fork_request.receive(self.other)
            fork_request.accept(self.other)
        for fd in fds:
            os.close(fd)
        return sent


def test_a_forkserver_that_is_done_before_its_client_was_heard_to_have_sent_all_has_taken_it_over(
    tmp_path: Path,
) -> None:
    """Else the client would have another keeper made, and the first one, without a client, remove its directory."""
    ours, theirs = socket.socketpair()
    passed = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC), os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    with Slow(fileno=ours.detach()) as client_end:
        client_end.other = theirs
        fork_request.send(client_end, fork_request.keepers_for([tmp_path], lazy=True), passed)
        assert fork_request.is_taken_over(client_end)
    for fd in passed:
        os.close(fd)


@pytest.mark.parametrize("in_time", [True, False])
def test_a_client_that_gives_up_and_a_forkserver_that_answers_just_then_agree(in_time: bool) -> None:
    """Else each would have keepers forked, for the same instances."""
    ours, theirs = socket.socketpair()
    with theirs, Impatient(fileno=ours.detach()) as client_end:
        client_end.meanwhile = partial(fork_request.accept, theirs) if in_time else lambda: None
        assert fork_request.is_taken_over(client_end) == in_time
        if not in_time:
            with pytest.raises(BrokenPipeError):
                fork_request.accept(theirs)
