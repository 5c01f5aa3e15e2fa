"""A CRIU that is killed: the command says so at once, and nothing is left. The kill comes from an action script of
CRIU's, at a moment that is always the same; `tests/live/kill_criu.py` kills at any, and counts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import CriuKilledError
from ijfs.live.process import procfs, tcp_repair
from ijfs_engine import IjfsError

pytestmark = [pytest.mark.root, pytest.mark.criu]

TALKING = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
a = socket.create_connection(listener.getsockname())
b, _ = listener.accept()
n = 0
while True:
    n += 1
    a.sendall(b"x")
    assert b.recv(1) == b"x"
    open("/tmp/count", "w").write(str(n))
    time.sleep(0.02)
"""


class Killer:
    """A CRIU in place of the usual one, which is killed once at the moment of `kill_at`."""

    def __init__(self, directory: Path) -> None:
        self._at, self._after = directory / "at", directory / "after-ijfs"
        script = directory / "kill"
        script.write_text(
            f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = "$(cat {self._at} 2>/dev/null)" ] || exit 0\n'
            f"rm {self._at}\nkill -9 $PPID\n"
        )
        self.criu = directory / "criu"
        # The script that was given last is the first to be run.
        self.criu.write_text(
            f"#!/bin/sh\nverb=$1; shift; mine='--action-script {script}'\ncase $verb in dump|restore) "
            f'[ -e {self._after} ] && set -- $mine "$@" || set -- "$@" $mine;; esac\n'
            f'exec {criu_command.find()} $verb "$@"\n'
        )
        for program in (script, self.criu):
            program.chmod(0o755)

    def kill_at(self, moment: str, *, after_ijfs: bool = False) -> None:
        """`after_ijfs`: when ijfs has done at that moment what it does there."""
        if after_ijfs:
            self._after.touch()
        self._at.write_text(moment)

    @property
    def killed(self) -> bool:
        return not self._at.exists()


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Killer:
    made = Killer(tmp_path)
    monkeypatch.setenv("IJFS_CRIU", str(made.criu))
    return made


def assert_it_goes_on(live_env: LiveEnv, name: str) -> None:
    written = live_env.upper(name) / "tmp/count"
    before = written.read_text()
    assert eventually(lambda: written.read_text() not in (before, "")), live_env.exec(name, "true")


def test_a_dump_that_is_killed_before_it_begins_leaves_the_program(live_env: LiveEnv, killer: Killer) -> None:
    live_env.python("p", TALKING)
    assert eventually((live_env.upper("p") / "tmp/count").exists)
    killer.kill_at("pre-dump")
    with pytest.raises(CriuKilledError, match=r"ended by SIGKILL in the middle of the dump; the program runs on"):
        live_env.save("p")
    assert killer.killed
    assert_it_goes_on(live_env, "p")
    live_env.restore(live_env.save("p").snapshot, "again")
    assert_it_goes_on(live_env, "again")


def test_a_program_that_a_killed_dump_takes_along_comes_back_from_the_save_before(
    live_env: LiveEnv, killer: Killer
) -> None:
    """Its threads have a trap of CRIU's to answer for, and nobody who takes it from them."""
    live_env.python("p", TALKING)
    assert eventually((live_env.upper("p") / "tmp/count").exists)
    before = live_env.save("p").snapshot
    killer.kill_at("post-dump")
    with pytest.raises(IjfsError, match="ended by SIGKILL in the middle of the dump"):
        live_env.save("p")
    assert killer.killed
    live_env.restore(before, "p", replace=True)
    assert_it_goes_on(live_env, "p")


def test_a_program_that_a_killed_dump_takes_along_when_all_of_it_is_taken_is_saved(
    live_env: LiveEnv, killer: Killer
) -> None:
    live_env.python("p", TALKING)
    assert eventually((live_env.upper("p") / "tmp/count").exists)
    killer.kill_at("post-dump", after_ijfs=True)
    saved = live_env.save("p")
    assert killer.killed
    said = "CRIU was ended by SIGKILL in the middle of the dump, and the program ended with it; all of it is saved"
    assert said in saved.warnings[0]
    assert eventually(lambda: client.describe(live_env.repo, "p").status == "exited")
    live_env.restore(saved.snapshot, "p", replace=True)
    assert_it_goes_on(live_env, "p")


def test_connections_in_repair_mode_are_let_go_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:
            ours.setsockopt(socket.IPPROTO_TCP, tcp_repair.TCP_REPAIR, 1)
            tcp_repair.end([os.getpid()])
            assert ours.getsockopt(socket.IPPROTO_TCP, tcp_repair.TCP_REPAIR) == 0
            ours.sendall(b"on")
            theirs.settimeout(patient(10))
            assert theirs.recv(2) == b"on"


@pytest.mark.parametrize("moment", ["setup-namespaces", "post-restore", "pre-resume", "post-resume"])
def test_a_restore_that_is_killed_leaves_the_live_program_and_nothing_else(
    live_env: LiveEnv, killer: Killer, moment: str
) -> None:
    live_env.python("p", TALKING)
    assert eventually((live_env.upper("p") / "tmp/count").exists)
    saved, pid = live_env.save("p").snapshot, client.describe(live_env.repo, "p").pid
    killer.kill_at(moment)
    with pytest.raises(CriuKilledError, match="ended by SIGKILL in the middle of the restore"):
        live_env.restore(saved, "new")
    killer.kill_at(moment)
    with pytest.raises(CriuKilledError, match="ended by SIGKILL in the middle of the restore"):
        live_env.restore(saved, "p", replace=True)
    assert killer.killed
    assert [(info.name, info.pid) for info in client.list_instances(live_env.repo)] == [("p", pid)]
    assert eventually(lambda: not procfs.processes_on(live_env.repo / "live/new")), "its keeper ends a moment later"
    assert not procfs.processes_on(live_env.repo / "live/p/box-2")
    assert_it_goes_on(live_env, "p")
