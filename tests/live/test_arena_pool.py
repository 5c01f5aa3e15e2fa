"""The memory of saves: bounded, used again, and what does not fit lies on disk; a real program is saved either way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.checkpoint import arena_pool
from ijfs.live.checkpoint.arena_pool import ArenaPool
from ijfs.live.client import api as client
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.sizes import parse_size
from ijfs.live.process import memory, procfs
from ijfs_engine import IjfsError

MIB = 1 << 20

# Says at each turn what its memory hashes to, computed anew.
HASHES = """
import hashlib, os, time
data = os.urandom(48 << 20)
print("is", hashlib.sha256(data).hexdigest(), flush=True)
while True:
    with open("/tmp/now.new", "w") as file: file.write(hashlib.sha256(data).hexdigest())
    os.rename("/tmp/now.new", "/tmp/now")
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("said", "meant"), [("1048576", MIB), ("8M", 8 * MIB), ("2g", 2 << 30), ("1 GiB", None), ("", None)]
)
def test_a_size_is_read_or_refused(said: str, meant: int | None) -> None:
    if meant is None:
        with pytest.raises(IjfsError, match="no size"):
            parse_size("A_VARIABLE", said)
    else:
        assert parse_size("A_VARIABLE", said) == meant


def test_the_budget_is_what_is_said_less_what_saves_before_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IJFS_SAVE_MEMORY", "4M")
    pool = ArenaPool()
    first = pool.acquire(MIB, 8 * MIB, tmp_path)
    first.new_file().tail(3 * MIB)
    second = pool.acquire(MIB, 8 * MIB, tmp_path)
    assert (first.limit, second.limit) == (4 * MIB, MIB)
    pool.release(first)
    assert pool.acquire(MIB, 8 * MIB, tmp_path).limit == 4 * MIB


def test_without_a_word_it_leaves_the_machine_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IJFS_SAVE_MEMORY", raising=False)
    free = memory.available()
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < arena_pool.budget() < free * 1.2


@pytest.mark.parametrize("version", ["", "memory"])
def test_a_cgroup_with_less_than_the_machine_counts(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, limit, usage, cache = memory._CGROUPS[version]
    inner = tmp_path / "slice" / "scope"
    inner.mkdir(parents=True)
    for directory, most in ((tmp_path / "slice", 64 * MIB), (inner, 48 * MIB)):
        (directory / limit).write_text(str(most))
        (directory / usage).write_text(str(40 * MIB))
        (directory / "memory.stat").write_text(f"other 1\n{cache} {30 * MIB}\n")
    (tmp_path / limit).write_text("max")
    monkeypatch.setattr(memory, "_CGROUPS", {version: (tmp_path, limit, usage, cache)})
    lines = {"/proc/self/cgroup": [f"0:{version}:/slice/scope"]}
    real = memory._lines
    monkeypatch.setattr(memory, "_lines", lambda path: lines.get(str(path)) or real(path))
    assert memory.available() == 38 * MIB


def test_what_came_back_is_lent_again_and_forgotten_on_demand(tmp_path: Path) -> None:
    pool = ArenaPool()
    first = pool.acquire(MIB, 8 * MIB, tmp_path)
    pool.release(first)
    again = pool.acquire(MIB, 4 * MIB, tmp_path)
    assert again is first
    other = pool.acquire(MIB, 4 * MIB, tmp_path)
    assert other is not first, "what is lent is nobody else's"
    pool.release(other)
    pool.release(again)
    assert pool.acquire(MIB, 9 * MIB, tmp_path) is first, "a program may have grown a little"
    pool.release(first)
    assert pool.acquire(MIB, 16 * MIB, tmp_path).capacity >= 16 * MIB, "one that is too small is replaced"
    pool.release(first)
    pool.forget()
    assert pool.acquire(MIB, 4 * MIB, tmp_path) is not first


@pytest.mark.root
@pytest.mark.criu
def test_an_image_larger_than_the_memory_for_it_is_saved_and_the_save_says_so(
    live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IJFS_SAVE_MEMORY", "16M")
    live_env.python("large", HASHES)
    log = Path(client.describe(live_env.repo, "large").log)
    assert eventually(lambda: "is" in log.read_text(), 30)
    content = log.read_text().split()[1]
    assert eventually((live_env.upper("large") / "tmp/now").exists, 30)
    saved = live_env.save("large")
    assert saved.spilled_bytes > 32 * MIB
    assert any("did not fit into the 16 MiB" in warning for warning in saved.warnings)
    assert not list(live_env.upper("large").parent.glob("stage-*"))
    live_env.stop("large")
    live_env.restore(saved.snapshot, "back")
    began = time.time()
    now = live_env.upper("back") / "tmp/now"
    assert eventually(lambda: now.stat().st_mtime > began, 30)
    assert now.read_text() == content


@pytest.mark.root
@pytest.mark.criu
def test_memory_of_a_save_rests_in_the_keeper_for_the_next_one(
    live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IJFS_SAVE_MEMORY", raising=False)
    live_env.python("warm", HASHES)
    log = Path(client.describe(live_env.repo, "warm").log)
    assert eventually(lambda: "is" in log.read_text(), 30)
    first = live_env.save("warm")
    keeper = read_record(InstancePaths.of(live_env.repo, "warm")).keeper
    assert keeper is not None

    def resting() -> int:
        return procfs.memory_in_smaps(keeper.pid)["LazyFree"]

    assert first.spilled_bytes == 0
    assert resting() > 48 * MIB
    live_env.save("warm")
    assert resting() > 48 * MIB
