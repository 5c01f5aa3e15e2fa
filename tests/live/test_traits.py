"""What the kernel keeps of a process beside its memory, one by one: what a copy has again, and what it lacks, which the
guide lists."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.model.records import InstanceSpec

pytestmark = [pytest.mark.root, pytest.mark.criu]

LOST = {
    "TCP_USER_TIMEOUT",
    "slice",
    "personality",
    "memory policy",
    "sealed memory",
    "unread datagram",
    "multicast",
    "start time",
    "processor time",
}
"""Of the traits in traits.py; all others come back."""

WARNED = {
    "sealed memory": "(mseal)",
    "unread datagram": "UDP socket",
    "multicast": "multicast groups are lost in a copy: 239.1.2.3",
}
"""What a save says of those that somebody may miss."""


def said(live_env: LiveEnv, name: str) -> list[dict[str, Any]]:
    lines = Path(client.describe(live_env.repo, name).log).read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_what_a_process_has_beside_its_memory_comes_back_or_is_listed(live_env: LiveEnv) -> None:
    argv = (sys.executable, str(Path(__file__).with_name("traits.py")))
    client.start(live_env.repo, InstanceSpec(name="first", argv=argv, cwd="/"))
    assert eventually(lambda: said(live_env, "first"))
    saved = live_env.save("first")
    live_env.restore(saved.snapshot, "eager", eager=True)
    (fork,) = client.fork(live_env.repo, "first")
    for name in ("first", "eager", fork.name):
        count = len(said(live_env, name))
        assert eventually(lambda name=name, count=count: len(said(live_env, name)) > count + 1)
    cannot = set(said(live_env, "first")[-1]["cannot"])
    assert said(live_env, "first")[-1]["changed"] == [], "the original has all"
    for name in ("eager", fork.name):
        assert set(said(live_env, name)[-1]["changed"]) == LOST - cannot, name
    for trait, words in WARNED.items():
        assert any(words in warning for warning in saved.warnings) == (trait not in cannot), saved.warnings
