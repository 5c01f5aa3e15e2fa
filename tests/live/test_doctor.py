"""doctor and blockers: what they see on this machine, in programs made to have it, and where nothing can be seen."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live import doctor
from ijfs.live.checks import blockers
from ijfs.live.checks.result import refused
from ijfs.live.client import api as client
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import write_record
from ijfs.live.model.records import InstanceRecord, InstanceSpec
from ijfs_engine import UnknownNameError

pytestmark = [pytest.mark.root, pytest.mark.criu]


def test_a_machine_on_which_the_live_tests_run_is_found_fit(live_machine: None, tmp_path: Path) -> None:
    verdicts = doctor.machine(tmp_path / "not" / "yet")
    assert not refused(verdicts)
    assert {"kernel", "capabilities", "CRIU", "criu check", "overlay", "userfaultfd", "FUSE", "init", "disk space"} <= {
        verdict.check for verdict in verdicts
    }
    assert os.listdir(tmp_path) == []


def test_a_machine_without_criu_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IJFS_CRIU", "/no/such/criu")
    (verdict,) = [verdict for verdict in doctor.machine(tmp_path) if verdict.check == "CRIU"]
    assert (verdict.outcome, "tools/setup" in verdict.remedy) == ("refuse", True)


def test_a_criu_that_is_too_old_or_fails_its_check_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "criu"
    old.write_text('#!/bin/sh\n[ "$1" = check ] && echo "Error: vdso not understood" && exit 1\necho Version: 3.17.1\n')
    old.chmod(0o755)
    monkeypatch.setenv("IJFS_CRIU", str(old))
    found = {verdict.check: verdict for verdict in doctor.machine(tmp_path)}
    assert found["CRIU"].outcome == "refuse"
    assert "3.17.1" in found["CRIU"].evidence
    assert "vdso not understood" in found["criu check"].evidence


def test_a_repository_where_no_overlay_can_stand_is_refused(live_machine: None) -> None:
    (verdict,) = [
        verdict for verdict in doctor.machine(Path("/proc/none")) if verdict.check in ("overlay", "filesystem")
    ][:1]
    assert verdict.outcome in ("refuse", "unknown")


def test_a_program_with_an_io_uring_and_an_open_database_is_told_so(live_env: LiveEnv) -> None:
    code = """
import ctypes, sqlite3, time
ring = ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(256))
connection = sqlite3.connect("/tmp/open.db"); connection.execute("create table t (x)"); connection.commit()
print("up", flush=True); time.sleep(1000)
"""
    info = live_env.python("blocked", code, io_uring=True)
    assert eventually(lambda: "up" in Path(info.log).read_text())
    found = {verdict.check: verdict for verdict in doctor.program(live_env.repo, "blocked")}
    assert found["io_uring"].outcome == "refuse"
    assert found["io_uring"].remedy
    assert found["sqlite"].outcome == "warn"
    assert "/tmp/open.db" in found["sqlite"].evidence


DEVICES = """
mount -t tmpfs ijfs-test /dev
mknod /dev/null c 1 3; mknod /dev/fuse c 10 229
mkdir /dev/nvidia-caps; for name in nvidia-uvm nvidia-caps/nvidia-cap2; do mknod /dev/$name c 10 229; done
exec "$0" -c "$1"
"""


def test_the_gpus_files_are_the_gpu_layers_whatever_their_numbers_and_other_devices_are_named() -> None:
    code = """
import os
from ijfs.live.checks import blockers
files = [os.open("/dev/" + name, os.O_RDWR) for name in ("nvidia-uvm", "nvidia-caps/nvidia-cap2", "fuse")]
print(*(verdict.evidence for verdict in blockers.of_process(os.getpid())), sep="\\n")
"""
    command = ["unshare", "--mount", "sh", "-ec", DEVICES, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.endswith("has the device /dev/fuse open")


def test_a_program_with_nothing_against_it_is_fine(live_env: LiveEnv) -> None:
    live_env.command("fine", "while true; do sleep 1; done")
    assert [verdict.outcome for verdict in doctor.program(live_env.repo, "fine")] == ["ok"]


def test_a_process_outside_a_sandbox_cannot_be_saved_and_a_tracer_is_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        found = {verdict.check: verdict for verdict in doctor.program(Path("/none"), str(process.pid))}
        assert found["sandbox"].outcome == "warn"
        assert "ijfs run" in found["sandbox"].remedy
    finally:
        process.kill()
        process.wait()
    assert blockers.of_process(process.pid) == []


def test_what_is_neither_an_instance_nor_a_process_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        doctor.program(tmp_path, "nobody")
    with pytest.raises(UnknownNameError):
        doctor.program(tmp_path, "4194303")


LIMIT = """
import sqlite3, time, os
connection = sqlite3.connect("/root/limit.db", isolation_level=None)
connection.execute("create table if not exists t (x)")
def attempt(how):
    try:
        how.execute("insert into t values (1)")
        return "ok"
    except sqlite3.OperationalError as error:
        return str(error)
while True:
    fresh = sqlite3.connect("/root/limit.db", isolation_level=None)
    line = f"{attempt(connection)} | {attempt(fresh)}"
    fresh.close()
    with open("/tmp/attempt.new", "w") as file: file.write(line)
    os.rename("/tmp/attempt.new", "/tmp/attempt")
    time.sleep(0.05)
"""


def test_limit_an_open_sqlite_connection_is_read_only_after_a_restore_and_a_new_one_is_not(live_env: LiveEnv) -> None:
    """The documented limit (docs/guide.md): the file's inode number is another one. SQLite itself says so clearly."""
    assert sqlite3.sqlite_version_info
    live_env.python("database", LIMIT)
    attempt = live_env.upper("database") / "tmp/attempt"
    assert eventually(lambda: attempt.exists() and attempt.read_text() == "ok | ok")
    result = live_env.save("database")
    assert any("SQLite" in warning for warning in result.warnings)
    time.sleep(0.2)
    assert attempt.read_text() == "ok | ok"
    live_env.restore(result.snapshot, "sibling")
    sibling = Path(client.describe(live_env.repo, "sibling").log).parents[2] / "tmp/attempt"
    assert eventually(lambda: sibling.read_text() == "attempt to write a readonly database | ok")


def test_programs_that_ended_with_the_machine_are_named_and_those_that_were_saved_come_back(tmp_path: Path) -> None:
    """What is left of them is a record of a machine that was started at another time."""
    for name, snapshot in (("saved", "ab" * 32), ("never", None)):
        paths = InstancePaths.of(tmp_path, name)
        paths.root.mkdir(parents=True)
        spec = InstanceSpec(name=name, argv=("sleep", "9"), cwd="/")
        write_record(paths, InstanceRecord(spec=spec, boot_id="another", snapshot=snapshot))
    (lost,) = [verdict for verdict in doctor.machine(tmp_path) if verdict.check == "programs"]
    assert lost.evidence == "2 ended with the machine: never, saved"
    assert lost.remedy == "`ijfs restore --lost` brings back what was saved: saved"
    assert {info.name: info.note for info in client.list_instances(tmp_path)} == {
        "saved": "ended with the machine",
        "never": "ended with the machine",
    }
