"""A program whose snapshot is at a remote alone: it runs before its bytes are here, and what it saves then is here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.process import fork_request
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

PROGRAM = """
import hashlib, os, time
data = os.urandom(24 << 20)
digest = hashlib.blake2b(data).hexdigest()
open("/tmp/file", "wb").write(data[:1 << 20])
open("/tmp/ready", "w").close()
while True:
    if os.path.exists("/tmp/ask"):
        os.unlink("/tmp/ask")
        right = hashlib.blake2b(data).hexdigest() == digest and open("/tmp/file", "rb").read() == data[:1 << 20]
        open("/tmp/answer.new", "w").write(str(right))
        os.rename("/tmp/answer.new", "/tmp/answer")
    time.sleep(0.01)
"""


def is_right(live_env: LiveEnv, name: str) -> bool:
    tmp = live_env.upper(name) / "tmp"
    (tmp / "answer").unlink(missing_ok=True)
    assert live_env.exec(name, "touch", "/tmp/ask") == 0
    assert eventually(lambda: (tmp / "answer").exists(), 60)
    return (tmp / "answer").read_text() == "True"


def test_a_program_of_a_remote_runs_here_and_is_saved_here(live_env: LiveEnv, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    live_env.python("far", PROGRAM)
    assert eventually(lambda: (live_env.upper("far") / "tmp/ready").exists(), 30)
    saved = bytes.fromhex(live_env.save("far").snapshot)
    live_env.stop("far", timeout_s=0)
    client.remove(live_env.repo, "far")
    with Repository.open(live_env.repo) as repository:
        repository.remotes.add("origin", f"file://{bucket}")
        repository.remotes.push("origin", {"branch/far": saved})
        repository.remove(saved)
        repository.gc()
        assert not repository.is_here(saved)
    live_env.restore("origin/far", "far")
    assert is_right(live_env, "far")
    again = live_env.save("far").snapshot
    live_env.stop("far", timeout_s=0)
    client.remove(live_env.repo, "far")
    bucket.rename(tmp_path / "gone")
    with Repository.open(live_env.repo) as repository:
        assert repository.fsck().clean
        assert repository.snapshot(bytes.fromhex(again)).parents == (saved,)
    live_env.restore(again, "far")
    assert is_right(live_env, "far")


def test_a_program_moves_to_another_machine(live_env: LiveEnv, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for path in (live_env.repo, there):
        with Repository.init(path) if path == there else Repository.open(path) as repository:
            repository.remotes.add("origin", f"file://{tmp_path}/bucket")
    live_env.python("far", PROGRAM)
    assert eventually(lambda: (live_env.upper("far") / "tmp/ready").exists(), 30)
    assert is_right(live_env, "far")
    # What ssh does: the host, then a line for a shell there; the answer of the one that matters most is lost.
    ssh = tmp_path / "ssh"
    lost = 'case "$*" in *" restore "*) sh -c "$*" >/dev/null; exit 255;; esac'
    ssh.write_text(f'#!/bin/sh\nshift\nexport IJFS_REPO={there}\n{lost}\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    program = f"{sys.executable} -P -m ijfs.cli"
    command = [*program.split(), "-r", live_env.repo, "migrate", "far", "elsewhere", "--ssh", ssh, "--ijfs", program]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    try:
        assert done.returncode == 0, done.stderr
        assert not client.is_running(live_env.repo, "far")
        moved = json.loads(done.stdout)
        assert moved["host"] == "elsewhere"
        tmp = Path(client.describe(there, "far").log).parents[2] / "tmp"
        (tmp / "answer").unlink(missing_ok=True)
        assert client.exec_command(there, "far", ["touch", "/tmp/ask"]) == 0
        assert eventually(lambda: (tmp / "answer").exists(), 60)
        assert (tmp / "answer").read_text() == "True"
    finally:
        if client.is_running(there, "far"):
            with client.connect(there, "far") as keeper:
                keeper.stop(timeout_s=0)
            client.remove(there, "far")
        fork_request.dismiss(there)
