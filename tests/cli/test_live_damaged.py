"""Live programs are reached when the index is lost, and when one of their records is damaged."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import Ijfs
from json_page import check
from waiting import eventually

from ijfs.cli.main import invoke
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.process import procfs

pytestmark = [pytest.mark.root, pytest.mark.criu]

PROGRAM = ("sh", "-c", "echo hello; sleep 1000")


@pytest.fixture
def live(repo: Path, run_ijfs: Ijfs) -> Iterator[Path]:
    """A repository with the programs `one` and `other`."""
    try:
        for name in ("one", "other"):
            assert run_ijfs("run", "--name", name, "--", *PROGRAM).code == 0
        yield repo
    finally:
        assert invoke(["stop", "--all", "--rm", "-q"]) == 0


def test_verbs_that_need_no_index_work_without_it(ijfs: Ijfs, run_ijfs: Ijfs, live: Path) -> None:
    shutil.rmtree(live / "index")
    listed = ijfs("ps", "--json")
    assert [one["name"] for one in listed.json["instances"]] == ["one", "other"]
    assert "is lost" in ijfs("ps").err
    inside = run_ijfs("exec", "one", "--", "echo", "inside")
    assert (inside.code, inside.out) == (0, "inside\n")
    assert ijfs("logs", "one").out == "hello\n"
    assert ijfs("stop", "one").code == 0
    assert ijfs("save", "other").code == 1
    assert ijfs("fsck", "--repair", "-q").code == 0
    assert ijfs("save", "other").code == 0


def test_a_damaged_record_is_written_anew_or_a_row_that_can_be_ended(ijfs: Ijfs, live: Path) -> None:
    paths = InstancePaths.of(live, "one")
    before = read_record(paths)
    for broken in (b"", b"{", b'{"version": "x"}', b"\xff\xfe"):
        paths.record.write_bytes(broken)
        assert "damaged" not in ijfs("ps").out
        assert read_record(paths) == before
    assert before.keeper is not None
    os.kill(before.keeper.pid, signal.SIGKILL)
    assert eventually(lambda: not procfs.is_alive(before.keeper))
    paths.record.write_bytes(b"")
    shown = ijfs("ps").out
    assert "one    damaged record" in shown
    assert "`ijfs stop --rm one`" in shown
    assert "other" in shown
    listed = ijfs("ps", "--json").json
    check(listed, "ps")
    assert [one["name"] for one in listed["damaged"]] == ["one"]
    assert [one["name"] for one in listed["instances"]] == ["other"]
    refused = ijfs("stop", "one")
    assert refused.code == 1
    assert "`ijfs stop --rm one`" in refused.err
    assert procfs.is_alive(before.program)
    assert ijfs("stop", "--rm", "one").code == 0
    assert not procfs.is_alive(before.program)
    assert not paths.root.exists()
