"""Many threads, many processes, and a family that shares its memory: what grows with their number. For live.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bench.live_programs import end, inside, wait_for
from ijfs.live.client import api as client
from ijfs.live.model.records import InstanceInfo, InstanceSpec
from ijfs.live.process import procfs

THREADS, PROCESSES, CHILDREN = 600, 200, 4
FAMILY_MIB = 300

_READY = "open('/tmp/ready', 'w').close()\n"
_THREADS = f"""
import threading, time
threading.stack_size(256 << 10)
for _ in range({THREADS}): threading.Thread(target=time.sleep, args=(10**6,), daemon=True).start()
{_READY}time.sleep(10**6)
"""
_PROCESSES = f"""
import subprocess, time
kept = [subprocess.Popen(["sleep", "1000000"]) for _ in range({PROCESSES})]
{_READY}time.sleep(10**6)
"""
_FAMILY = f"""
import os, time
block = os.urandom({FAMILY_MIB} << 20)
for _ in range({CHILDREN}):
    if os.fork() == 0: time.sleep(10**6)
{_READY}time.sleep(10**6)
"""


def measure(repo: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds (of memory: MiB) by what was measured, one of each round."""
    found: dict[str, list[float]] = {}
    found[f"{THREADS} threads, frozen"] = _frozen(repo, "threads", _THREADS, rounds)
    found[f"{PROCESSES} processes, frozen"] = _frozen(repo, "processes", _PROCESSES, rounds, keep=True)
    found[f"{PROCESSES} processes, restored eagerly"] = [
        _restored(repo, "processes", eager=True)[0] for _ in range(rounds)
    ]
    end(repo, "processes")
    _frozen(repo, "family", _FAMILY, 1, keep=True)
    for name, eager in (("lazily", False), ("eagerly", True)):
        runs = [_restored(repo, "family", eager=eager) for _ in range(rounds)]
        found[f"a family of {FAMILY_MIB} MiB, restored {name}"] = [seconds for seconds, _ in runs]
        found[f"its memory, MiB, restored {name}"] = [memory for _, memory in runs]
    end(repo, "family")
    return found


def _frozen(repo: Path, name: str, program: str, rounds: int, *, keep: bool = False) -> list[float]:
    """How long it stood still, at each of its saves but the first."""
    info = client.start(repo, InstanceSpec(name=name, argv=(sys.executable, "-c", program), cwd="/"))
    wait_for(inside(info) / "ready", 300)
    with client.connect(repo, name) as keeper:
        seconds = [keeper.save().frozen_s for _ in range(rounds + 1)]
    if not keep:
        end(repo, name)
    return seconds[1:]


def _restored(repo: Path, name: str, *, eager: bool) -> tuple[float, float]:
    """(seconds until it runs, MiB that its processes take when all is in)."""
    began = time.monotonic()
    info = client.restore(repo, name, "many", eager=eager)
    seconds = time.monotonic() - began
    with client.connect(repo, "many") as keeper:
        keeper.wait_memory()
    memory = _memory(info)
    end(repo, "many")
    return seconds, memory / (1 << 20)


def _memory(info: InstanceInfo) -> int:
    assert info.pid is not None
    members = procfs.processes_in("pid", procfs.namespace_id(info.pid, "pid"))
    return sum(procfs.memory_in_smaps(member).get("Pss", 0) for member in members)
