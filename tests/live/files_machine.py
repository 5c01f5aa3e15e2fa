"""Random work on files in a sandbox, saved, restored and forked in between, against the same work on files outside.

    make fuzz-files [--seconds 1200] [--seed 1] [--disk]

Each program has the operations that led to it. Its model has done them in a directory of its own, with files open and
mapped all the same. After every step both have the same; and what comes out of a snapshot is, down to each time, what
was there when it was taken. test_files_machine.py does a short one; `make fuzz-files` runs for twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from live_env import LiveEnv, open_env, why_not
from waiting import eventually

from ijfs.live.client import api as client
from tests.live.file_agent import SLOTS, Agent, answer

AGENT = Path(__file__).with_name("file_agent.py").read_text()
INSIDE = "/var/tmp/files-machine"
MOST_LIVE = 3

Operation = tuple[str, list[Any]]

names = st.sampled_from(["a", "b", "c", "d", "d/a", "d/b", "e", "e/a", "e/f", "e/f/a"])
slots = st.integers(0, SLOTS - 1)
seeds = st.integers(0, 1 << 20)
sizes = st.sampled_from([0, 1, 100, 4096, 5000, 70_000, 300_000])
offsets = st.sampled_from([0, 1, 4095, 8192, 100_000, 5_000_000])


def operation(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Operation]:
    return st.tuples(st.just(name), st.tuples(*arguments).map(list))


operations = st.one_of(
    operation("write", names, offsets, sizes, seeds),
    operation("write", names, offsets, sizes, seeds),
    operation("truncate", names, offsets),
    operation("unlink", names),
    operation("rename", names, names),
    operation("link", names, names),
    operation("symlink", names, names),
    operation("mkdir", st.sampled_from(["d", "e", "e/f"])),
    operation("rmdir", st.sampled_from(["d", "e", "e/f"])),
    operation("chmod", names, st.sampled_from([0o600, 0o644, 0o755, 0o4755])),
    operation("setxattr", names, seeds),
    operation("utime", names, st.integers(0, 1 << 31)),
    operation("open", slots, names),
    operation("close", slots),
    operation("go_on", slots, sizes, seeds),
    operation("map", slots, names),
    operation("unmap", slots),
    operation("poke", slots, st.integers(0, 1 << 20), st.integers(0, 255)),
)
lists = st.lists(operations, min_size=1, max_size=12)
whose = st.integers(0, MOST_LIVE - 1)


@dataclass
class Live:
    """A program, what led to it, and its model."""

    name: str
    model: Agent
    folder: Path
    done: list[Operation]
    requests: int = 0


@dataclass
class Saved:
    """A snapshot: what led to it, and what was there."""

    snapshot: str
    done: list[Operation] = field(default_factory=list)
    there: dict[str, Any] = field(default_factory=dict)


class FilesMachine(RuleBasedStateMachine):
    """Rules do the same to programs and to their models. `env` and `disk` are set by who runs it."""

    env: ClassVar[LiveEnv]
    disk: ClassVar[int] = 0
    counts: ClassVar[dict[str, int]] = {"operations": 0, "saves": 0, "restores": 0, "programs": 0}

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ijfs-files-machine-"))
        self.live: list[Live] = []
        self.saved: list[Saved] = []
        self.number = 0

    def teardown(self) -> None:
        for one in self.live:
            self.end(one)
        shutil.rmtree(self.folder)

    def end(self, one: Live) -> None:
        self.env.stop(one.name, timeout_s=0)
        client.remove(self.env.repo, one.name)
        one.model.close()

    def begin(self, done: list[Operation]) -> Live:
        """A new name, and a model that has done all that led to it."""
        self.number += 1
        self.counts["programs"] += 1
        folder = self.folder / str(self.number)
        model = Agent(os.fspath(folder))
        for name, arguments in done:
            model.do(name, arguments)
        return Live(f"files-{self.number}", model, folder, list(done))

    @initialize()
    def start(self) -> None:
        one = self.begin([])
        argv = (sys.executable, "-c", AGENT, INSIDE)
        client.start(self.env.repo, client.InstanceSpec(name=one.name, argv=argv, cwd="/", disk=self.disk))
        self.live.append(one)
        assert eventually((self.mailbox(one) / "ready").exists, 60)

    def mailbox(self, one: Live) -> Path:
        return Path(f"/proc/{client.describe(self.env.repo, one.name).pid}/root/dev/shm")

    def ask(self, one: Live, wanted: list[Operation]) -> tuple[list[str], dict[str, Any]]:
        """What the program says."""
        one.requests += 1
        mailbox = self.mailbox(one)
        (mailbox / "told").write_text(json.dumps([one.requests, wanted]))
        (mailbox / "told").rename(mailbox / "request")
        assert eventually((mailbox / "answer").exists, 60), f"{one.name} does not answer"
        number, errors, there = json.loads((mailbox / "answer").read_text())
        (mailbox / "answer").unlink()
        assert number == one.requests
        return errors, there

    @rule(who=whose, wanted=lists)
    def work(self, who: int, wanted: list[Operation]) -> None:
        self.work_in(self.live[who % len(self.live)], wanted)

    def work_in(self, one: Live, wanted: list[Operation]) -> None:
        errors, there = self.ask(one, wanted)
        expected_errors, expected = answer(one.model, wanted)
        one.done += wanted
        self.counts["operations"] += len(wanted)
        assert errors == expected_errors, wanted
        assert _without_times(there) == _without_times(expected), wanted

    @precondition(lambda self: len(self.saved) < 6)
    @rule(who=whose, wanted=lists)
    def save(self, who: int, wanted: list[Operation]) -> None:
        one = self.live[who % len(self.live)]
        self.work_in(one, wanted)
        there = self.ask(one, [])[1]
        self.saved.append(Saved(self.env.save(one.name).snapshot, list(one.done), there))
        self.counts["saves"] += 1
        assert self.ask(one, [])[1] == there, "a save leaves it as it was"

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 5), who=whose, wanted=lists)
    def restore(self, which: int, who: int, wanted: list[Operation]) -> None:
        """A copy beside the others, or in the place of one."""
        saved = self.saved[which % len(self.saved)]
        if len(self.live) == MOST_LIVE:
            self.end(self.live.pop(who % MOST_LIVE))
        one = self.begin(saved.done)
        self.env.restore(saved.snapshot, one.name)
        self.counts["restores"] += 1
        self.live.append(one)
        assert self.ask(one, [])[1] == saved.there, "what was saved comes back"
        self.work_in(one, wanted)

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 5), who=whose, wanted=lists)
    def go_back(self, which: int, who: int, wanted: list[Operation]) -> None:
        saved, old = self.saved[which % len(self.saved)], self.live[who % len(self.live)]
        one = self.begin(saved.done)
        one.name = old.name
        old.model.close()
        self.live[self.live.index(old)] = one
        self.env.restore(saved.snapshot, one.name, replace=True)
        self.counts["restores"] += 1
        assert self.ask(one, [])[1] == saved.there, "what was saved comes back in place"
        self.work_in(one, wanted)


def _without_times(there: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:-1] if len(value) > 3 else value for name, value in there.items()}


def machine(env: LiveEnv, disk: int) -> type[FilesMachine]:
    """The machine for an environment; `disk`: bytes of each program's own, or 0."""
    return type("FilesMachine", (FilesMachine,), {"env": env, "disk": disk})


def settings_of(examples: int, steps: int, *, derandomize: bool = False) -> settings:
    """So many runs of so many steps, whatever they take."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=derandomize,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def main() -> None:
    """The campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--disk", action="store_true", help="programs have disks of their own")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        sys.exit(reason)
    until, turn = time.monotonic() + options.seconds, options.seed
    with tempfile.TemporaryDirectory(prefix="ijfs-fuzz-files-") as folder, open_env(Path(folder)) as env:
        kind = machine(env, (1 << 30) if options.disk else 0)
        while time.monotonic() < until:
            run_state_machine_as_test(seed(turn)(kind), settings=settings_of(6, 40))
            turn += 1
            print(f"seed {turn - 1}: {kind.counts}", flush=True)
    print(f"{turn - options.seed} runs, nothing wrong: {kind.counts}")


if __name__ == "__main__":
    main()
