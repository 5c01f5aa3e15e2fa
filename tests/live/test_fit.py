"""Whether a snapshot would come back on this machine is told before anything is tried, each difference by its name."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live import doctor
from ijfs.live.checks.result import CheckResult
from ijfs.live.client import api as client
from ijfs.live.machine import fit
from ijfs.live.process import elf, processor
from ijfs_engine.errors import UnknownNameError

HOLDS = """
import time
kept, gone = open("kept"), open("gone", "w+")
import os; os.unlink("gone")
own = open("/tmp/own", "w+"); own.write("own"); own.flush()
print("open", flush=True)
time.sleep(1000)
"""


def by_name(results: list[CheckResult]) -> dict[str, CheckResult]:
    return {result.check: result for result in results}


@pytest.mark.root
@pytest.mark.criu
def test_each_difference_between_a_snapshot_and_this_machine_is_a_row(
    live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = live_env.work / "kept"
    kept.write_text("as it was saved")
    info = live_env.python("holder", HOLDS, cwd=str(live_env.work))
    assert eventually(lambda: "open" in (live_env.upper("holder") / "run/ijfs/program.log").read_text())
    saved = live_env.save("holder")
    assert info.pid is not None
    assert doctor.named(live_env.repo, "holder")[0] == "program"

    def rows() -> dict[str, CheckResult]:
        what, results = doctor.named(live_env.repo, saved.snapshot[:12])
        assert what == "snapshot"
        return by_name(results)

    # The files of a running Python, by the build ids that CRIU wrote: none is another build, no deleted one is missing.
    assert {name: row.outcome for name, row in rows().items()} == dict.fromkeys(rows(), "ok")
    assert {"kernel", "processor", "CRIU", "files", "memory"} <= set(rows())

    kept.write_text("upgraded since")
    assert str(kept) in rows()["file"].evidence
    assert rows()["file"].outcome == "refuse"
    kept.unlink()
    assert rows()["file"].evidence == f"{kept} is gone"
    kept.write_text("as it was saved")
    assert "file" not in rows()

    with monkeypatch.context() as patch:
        patch.setattr(elf, "build_id", lambda path: b"another")
        assert any(row.evidence.endswith("is another build") for row in fit.of_snapshot(live_env.repo, saved.snapshot))
    with monkeypatch.context() as patch:
        patch.setattr(processor, "flags", lambda: frozenset(("fpu",)))
        assert rows()["processor"].outcome == ("refuse" if platform.machine() == "x86_64" else "warn")
    with monkeypatch.context() as patch:
        patch.setattr(fit, "available", lambda: 1 << 20)
        assert rows()["memory"].outcome == "warn"
    with monkeypatch.context() as patch:
        patch.setattr(platform, "release", lambda: "5.14.0")
        assert rows()["kernel"].outcome == "warn"
        patch.setattr(platform, "machine", lambda: "riscv64")
        assert rows()["kernel"].outcome == "refuse"


@pytest.mark.root
@pytest.mark.criu
def test_another_machine_says_whether_a_snapshot_would_come_back_there_and_gets_nothing_of_it(
    live_env: LiveEnv, tmp_path: Path
) -> None:
    live_env.command("holder", "SECRET=xyzzy sleep 1000")
    saved = live_env.save("holder").snapshot
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nshift\ntee {tmp_path}/sent | IJFS_REPO={tmp_path}/there sh -c "$*"\n')
    ssh.chmod(0o755)
    program = f"{sys.executable} -P -m ijfs.cli"
    words = ["-r", str(live_env.repo), "doctor", saved, "--on", "elsewhere", "--ssh", str(ssh), "--ijfs", program]
    done = subprocess.run([*program.split(), *words, "--json"], capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert (done.returncode, said["host"]) == (0, "elsewhere")
    here = fit.of_snapshot(live_env.repo, saved)
    assert {v["check"]: v["outcome"] for v in said["verdicts"]} == {v.check: v.outcome for v in here}
    sent = (tmp_path / "sent").read_text()
    assert "libc.so.6" in sent
    assert "xyzzy" not in sent
    assert not (tmp_path / "there").exists()


@pytest.mark.root
@pytest.mark.criu
def test_a_name_that_is_nothing_says_what_it_could_have_been(live_env: LiveEnv) -> None:
    with pytest.raises(
        UnknownNameError, match="neither a live program nor the pid of a process, and there is no such snap"
    ):
        doctor.named(live_env.repo, "nothing")
    assert client.list_instances(live_env.repo) == []
