"""`ijfs migrate` by a real sshd, with bad luck at each step: the program runs on here or there, never on both or none.

PYTHONPATH=tests:tests/remote python tests/remote/migrations.py [--only WORD] [--seed 1] [--kills 20]

Each case starts a program, migrates it, and looks at both machines. The connection breaks at each call that `migrate`
makes: before it arrives, after it was done and before its answer is back, in the middle; for a moment or for several
calls. The other machine refuses, has no room, has the name taken; the store goes away; `migrate` is killed and typed
again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from other_machine import THERE, OtherMachine, other_machine
from waiting import eventually

from ijfs_engine import Repository

IJFS = [sys.executable, "-P", "-m", "ijfs.cli"]
NAME = "far"

PROGRAM = """
import hashlib, os, time
data = os.urandom(8 << 20)
digest = hashlib.blake2b(data).hexdigest()
open("/tmp/file", "wb").write(data)
open("/tmp/ready", "w").close()
while True:
    if os.path.exists("/tmp/ask"):
        os.unlink("/tmp/ask")
        right = hashlib.blake2b(data).hexdigest() == digest and open("/tmp/file", "rb").read() == data
        open("/tmp/answer.new", "w").write(digest if right else "wrong")
        os.rename("/tmp/answer.new", "/tmp/answer")
    time.sleep(0.01)
"""
ASK = "rm -f /tmp/answer; touch /tmp/ask; until [ -e /tmp/answer ]; do sleep 0.02; done; cat /tmp/answer"

BROKEN_SSH = """
import os, pathlib, subprocess, sys, time
place = pathlib.Path(sys.argv[1])
call = int((place / "calls").read_text()) + 1
(place / "calls").write_text(str(call))
first, how, many = (place / "fault").read_text().split()
command = sys.argv[2:]
if how == "none" or not int(first) <= call < int(first) + int(many):
    os.execvp(command[0], command)
if how == "before" or call > int(first):
    sys.exit(255)
ssh = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
if how == "after":
    ssh.communicate()
else:
    time.sleep(float(how))
    ssh.kill()
sys.exit(255)
"""


class Both:
    """The two machines, and what runs on them."""

    def __init__(self, place: Path, other: OtherMachine) -> None:
        self.place = place
        self.here = place / "here"
        self.other = other
        self.bucket = place / "bucket"
        (place / "ssh.py").write_text(BROKEN_SSH)
        self._json(other.run(f"{other.ijfs} init --json"))
        self._json(other.run(f"{other.ijfs} remote add origin file://{self.bucket} --json"))
        with Repository.init(self.here) as repository:
            repository.remotes.add("origin", f"file://{self.bucket}")

    def _json(self, done: subprocess.CompletedProcess[str]) -> dict[str, object]:
        assert done.returncode == 0, done.stderr + done.stdout
        return dict(json.loads(done.stdout))

    def ijfs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A verb here."""
        return subprocess.run([*IJFS, "-r", self.here, *words], capture_output=True, text=True, check=False)

    def start(self) -> str:
        """The program, begun here; what it answers."""
        done = self.ijfs("run", "--name", NAME, "--replace", "--", sys.executable, "-c", PROGRAM)
        assert done.returncode == 0, done.stderr
        assert eventually(lambda: self.ijfs("exec", NAME, "--", "test", "-e", "/tmp/ready").returncode == 0)
        return self.ijfs("exec", NAME, "--", "sh", "-c", ASK).stdout.strip()

    def migrate(self, fault: str = "0 none 0") -> subprocess.Popen[str]:
        """`ijfs migrate`, begun; `fault`: which call of ssh breaks first, how, and how many do."""
        (self.place / "calls").write_text("0")
        (self.place / "fault").write_text(fault)
        ssh = shlex.join([sys.executable, str(self.place / "ssh.py"), str(self.place), *shlex.split(self.other.ssh)])
        command = [*IJFS, "-r", self.here, "migrate", NAME, THERE, "--ssh", ssh, "--ijfs", self.other.ijfs, "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def runs(self) -> list[str]:
        """Where it does."""
        here = json.loads(self.ijfs("ps", "--json").stdout)
        there = self._json(self.other.run(f"{self.other.ijfs} ps --json"))
        return [
            where
            for where, said in (("here", here), ("there", there))
            if any(one["name"] == NAME and one["status"] == "running" for one in said["instances"])  # type: ignore[attr-defined]
        ]

    def answer(self, where: str) -> str:
        """What it says now."""
        if where == "here":
            return self.ijfs("exec", NAME, "--", "sh", "-c", ASK).stdout.strip()
        return self.other.run(
            f"{self.other.ijfs} exec {NAME} -- sh -c {shlex.quote(shlex.quote(ASK)[1:-1])}"
        ).stdout.strip()

    def end(self) -> None:
        """Nothing of it is left on either."""
        self.ijfs("stop", "--rm", "-y", "--timeout", "0", NAME)
        self.other.run(f"{self.other.ijfs} stop --rm -y --timeout 0 {NAME}")

    def check(self, case: str, digest: str, said: str) -> str:
        """That it runs on exactly one machine, with all it had."""
        where = self.runs()
        assert len(where) == 1, f"{case}: it runs {where}; migrate said {said}"
        assert self.answer(where[0]) == digest, f"{case}: it is not what it was"
        return where[0]


def broken_connections(both: Both, rng: random.Random) -> Iterator[tuple[str, Callable[[], str]]]:
    """The connection breaks at each call."""
    for call in range(1, 6):
        for how in ("before", "after", f"{rng.random() * 0.8:.2f}"):
            for many in (1, 3):
                fault = f"{call} {how} {many}"
                yield f"call {call} breaks {how}, {many} in a row", lambda fault=fault: finished(both.migrate(fault))


def bad_luck(both: Both) -> Iterator[tuple[str, Callable[[], str]]]:
    """What else the other machine, the store and the network do."""
    yield "none", lambda: finished(both.migrate())
    yield "the name is taken there", lambda: taken(both)
    yield "no room there", lambda: without_room(both)
    yield "refused there", lambda: refused(both)
    yield "the store goes away", lambda: without_store(both)
    yield "the cable is pulled out for a while", lambda: unplugged(both)


def finished(migration: subprocess.Popen[str]) -> str:
    """What it said."""
    return migration.communicate(timeout=400)[0].strip()


def taken(both: Both) -> str:
    """Another program has the name there."""
    begun = both.other.run(f"{both.other.ijfs} run --name {NAME} -- sleep 1000")
    assert begun.returncode == 0, begun.stderr
    said = finished(both.migrate())
    assert "runs on" in said, said
    both.other.run(f"{both.other.ijfs} stop --rm -y --timeout 0 {NAME}")
    return said


def without_room(both: Both) -> str:
    """The disk of the repository there is full."""
    repo = both.other.repo
    full = f"mount -t tmpfs -o size=16k tmpfs {repo}/live"
    assert both.other.run(full).returncode == 0
    said = finished(both.migrate())
    assert both.other.run(f"umount -l {repo}/live").returncode == 0
    return said


def refused(both: Both) -> str:
    """A library that it has open is another one there."""
    library = both.other.run(
        f"ls {sys.base_prefix}/lib/libpython3*.so.1.0 /lib/x86_64-linux-gnu/libc.so.6"
    ).stdout.split()[-1]
    both.other.run(f"cp {library} /root/lib; printf x >> /root/lib; mount --bind /root/lib $(readlink -f {library})")
    said = finished(both.migrate())
    assert both.other.run(f"umount -l $(readlink -f {library})").returncode == 0
    assert "could not run" in said, said
    return said


def without_store(both: Both) -> str:
    """It is gone from the last save on until the end."""
    away = both.bucket.with_name("away")
    migration = both.migrate()
    assert eventually(lambda: int((both.place / "calls").read_text() or 0) >= 3 or migration.poll() is not None)
    both.bucket.rename(away)
    both.bucket.touch()
    said = finished(migration)
    both.bucket.unlink()
    away.rename(both.bucket)
    return said


def unplugged(both: Both) -> str:
    """The network between the two is gone for some seconds."""
    migration = both.migrate()
    assert eventually(lambda: int((both.place / "calls").read_text() or 0) >= 5 or migration.poll() is not None)
    both.other.cable(plugged=False)
    time.sleep(8)
    both.other.cable(plugged=True)
    subprocess.run(["ip", "addr", "replace", "10.97.31.1/30", "dev", f"ijfs{both.other.first}"], check=True)
    return finished(migration)


def killed(both: Both, after_s: float, number: int) -> str:
    """`migrate` is ended by a signal after a while, and typed again until it is through."""
    migration = both.migrate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        migration.wait(after_s)
    if migration.poll() is None:
        migration.send_signal(number)
    said = finished(migration)
    time.sleep(1)  # what it began elsewhere may go on
    for _ in range(5):
        if both.runs():
            break
        said += " | " + finished(both.migrate())
    return said


def main() -> None:
    """Run it, a line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="ijfs-moves-") as directory:
        place = Path(directory)
        (place / "ssh").mkdir()
        with other_machine(place / "ssh", place / "there") as other:
            both = Both(place, other)
            cases = [*bad_luck(both), *broken_connections(both, rng)]
            for _ in range(arguments.kills):
                after_s, number = rng.random() * 9, rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGHUP))
                cases.append((f"{number.name} after {after_s:.1f} s",
                              lambda after_s=after_s, number=number: killed(both, after_s, number)))  # fmt: skip
            done = 0
            try:
                for case, act in cases:
                    if arguments.only in case:
                        digest = both.start()
                        said = act()
                        where = both.check(case, digest, said)
                        both.end()
                        done += 1
                        print(f"{case}: runs {where}; {said[:160]!r}", flush=True)
            finally:
                both.end()
                for stop in (both.ijfs("stop", "--all"), both.other.run(f"{both.other.ijfs} stop --all")):
                    assert stop.returncode == 0, stop.stderr
    print(f"{done} cases: on one machine in each")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", f"{Path(__file__).parents[2]}:{Path(__file__).parents[2]}/engine")
    main()
