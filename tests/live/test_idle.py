"""Programs that nobody uses are parked on disk, or ended; what is used or at work is left alone."""

from __future__ import annotations

import os
import subprocess

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.client.forgetting import forget_ended
from ijfs.live.errors import CommandError, InstanceExitedError
from ijfs.live.keeper import idle
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.records import Idle
from ijfs.live.sandbox import namespaces
from ijfs.live.sandbox.sandbox import Sandbox

SOON = Idle(after_s=0.6)


def is_parked(env: LiveEnv, name: str) -> bool:
    return client.describe(env.repo, name).parked_on_disk


def test_an_idle_program_is_parked_forked_as_it_lies_and_woken(shared_env: LiveEnv) -> None:
    shared_env.command("rests", "echo here > /tmp/mine; exec sleep 1000", idle=SOON)
    shared_env.command("ends", "exec sleep 1000", idle=Idle(after_s=0.6, then="kill"))
    assert eventually(lambda: is_parked(shared_env, "rests"))
    with pytest.raises(InstanceExitedError, match="is parked on disk"):
        client.connect(shared_env.repo, "rests")
    assert eventually(lambda: client.describe(shared_env.repo, "ends").status == "exited")
    with pytest.raises(InstanceExitedError, match="was not parked"):
        client.wake(shared_env.repo, "ends")
    assert eventually(lambda: "ends" in forget_ended(shared_env.repo).names)
    assert is_parked(shared_env, "rests")
    (copy,) = client.fork(shared_env.repo, "rests", ["copy"], idle=Idle())
    assert client.exec_command(shared_env.repo, "copy", ["test", "-e", "/tmp/mine"]) == 0
    assert (copy.idle, is_parked(shared_env, "rests")) == (Idle(), True)
    woken = client.wake(shared_env.repo, "rests")
    assert (woken.status, woken.parked_on_disk, woken.idle) == ("running", False, SOON)
    assert eventually(lambda: is_parked(shared_env, "rests")), "and again"


def test_who_is_inside_is_seen_and_who_left_is_not(shared_env: LiveEnv) -> None:
    info = shared_env.command("entered", "sh -c 'exec sleep 1000' & exec sleep 1000")
    assert info.pid is not None
    network = namespaces.open_namespace(info.pid, "net")
    sandbox = Sandbox(InstancePaths.of(shared_env.repo, "entered").sandbox(1), network)
    try:
        sandbox.own(info.pid)
        assert not idle._look_at(sandbox).inside
        line = client.exec_line(shared_env.repo, "entered", ["sh", "-c", "echo in; read x"])
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as inside:
            assert inside.stdout is not None
            assert inside.stdout.readline() == b"in\n"
            assert idle._look_at(sandbox).inside
            inside.communicate(b"\n")
        assert not idle._look_at(sandbox).inside
    finally:
        for fd in (network, sandbox.pidfd):
            if fd is not None:
                os.close(fd)


@pytest.mark.parametrize(
    ("processor_s", "traffic", "worked"), [(0.1, 500, False), (3.0, 0, True), (0.0, 20_000, True), (0.2, 9_000, False)]
)
def test_what_counts_as_work_in_ten_seconds(processor_s: float, traffic: int, worked: bool) -> None:
    before = idle._Look(100.0, 7.0, 50, inside=False)
    after = idle._Look(110.0, 7.0 + processor_s, 50 + traffic, inside=False)
    assert after.is_work_since(before) is worked


def test_parking_one_that_leaves_nothing_is_refused(shared_env: LiveEnv) -> None:
    shared_env.command("origin", "exec sleep 1000")
    client.fork(shared_env.repo, "origin", ["brief"], ephemeral=True)
    with client.connect(shared_env.repo, "brief") as keeper, pytest.raises(CommandError, match="ephemeral"):
        keeper.park(disk=True)
    assert client.is_running(shared_env.repo, "brief")
