"""Whether a snapshot would come back on this machine is told before anything is tried, each difference by its name."""

from __future__ import annotations

import platform

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
def test_a_name_that_is_nothing_says_what_it_could_have_been(live_env: LiveEnv) -> None:
    with pytest.raises(
        UnknownNameError, match="neither an instance nor the pid of a process, and there is no such snap"
    ):
        doctor.named(live_env.repo, "nothing")
    assert client.list_instances(live_env.repo) == []
