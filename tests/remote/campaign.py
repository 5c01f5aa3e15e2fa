"""Machines and gateway killed at random while they push: what was acknowledged is there, and the tree is whole.

python tests/remote/campaign.py --rounds 500 --seed 1

Three repositories push into one bucket, each from a process of its own, one or two at a time. Half of the processes are
killed at a random moment, and so is the gateway in every fifth round; it is started again. Each process says what its
push returned for. Every 50 rounds a fresh machine clones the tree: each acknowledged snapshot has to be listed and to
have the bytes that were saved, and fsck has to find nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from remote_store import RGW, make_bucket, start

from ijfs_engine import Repository, import_directory

CHECK_EVERY = 50
ROUND_S = 120


def work(path: Path, seed: int) -> None:
    """One machine's part of a round: change a file, save, push, say so."""
    rng = random.Random(seed)
    files = path.with_name(f"{path.name}-files")
    files.mkdir(exist_ok=True)
    (files / f"f{rng.randrange(4)}").write_bytes(rng.randbytes(rng.randrange(1, 2 << 20)))
    with Repository.open(path) as repository:
        head = repository.refs.branches().get(path.name)
        saved = import_directory(repository, files, parents=[head] if head else [], branch=path.name)
        print("saved", saved.id.hex(), digest(repository, saved.id), flush=True)
        repository.remotes.push("origin", {f"branch/{path.name}": saved.id})
        print("pushed", saved.id.hex(), flush=True)


def digest(repository: Repository, ident: bytes) -> str:
    """Of all bytes of a snapshot's files."""
    reader = repository.reader()
    found = hashlib.blake2b()
    files = reader.lookup(repository.snapshot(ident).root, "files").content
    for entry in reader.tree(files).entries if files else ():
        found.update(entry.name + reader.open(entry).read(0, entry.size))
    return found.hexdigest()[:32]


class Campaign:
    """The rounds, and what they have to remember."""

    def __init__(self, place: Path, seed: int) -> None:
        os.environ.update(start())
        self.url = make_bucket(f"kills-{os.getpid()}-{seed}") + "/tree"
        self.rng = random.Random(seed)
        self.place = place
        self.hosts = [place / f"host{n}" for n in range(3)]
        self.saved: dict[str, str] = {}
        self.acknowledged: dict[str, str] = {}
        self.killed = self.gateways = 0
        for host in self.hosts:
            with Repository.init(host) as repository:
                repository.remotes.add("origin", self.url)

    def round(self, number: int) -> None:
        """One or two machines push; something may be killed."""
        hosts = self.rng.sample(self.hosts, self.rng.choice((1, 1, 2)))
        running = [self._started(host) for host in hosts]
        if self.rng.random() < 0.2:
            time.sleep(self.rng.random())
            self.gateways += 1
            subprocess.run([sys.executable, RGW, "kill"], check=True, timeout=60)
            os.environ.update(start())
        for process in running:
            if self.rng.random() < 0.5:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.rng.random() * 3)
                self.killed += process.poll() is None
                process.kill()
            self._collect(process, number)

    def _started(self, host: Path) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--work", host, "--seed", str(self.rng.randrange(1 << 40))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _collect(self, process: subprocess.Popen[str], number: int) -> None:
        out, err = process.communicate(timeout=ROUND_S)
        for line in out.splitlines():
            match line.split():
                case ["saved", ident, found]:
                    self.saved[ident] = found
                case ["pushed", ident]:
                    self.acknowledged[ident] = self.saved[ident]
        if process.returncode not in (0, -9):
            raise AssertionError(f"round {number}: {err[-2000:]}")

    def check(self) -> None:
        """A machine that knows nothing looks at all of it."""
        fresh = self.place / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        with Repository.init(fresh) as repository:
            repository.remotes.add("origin", self.url)
            repository.remotes.fetch("origin")
            report = repository.remotes.fsck("origin")
            assert not report.harm, report.harm
            tree = repository.remotes.known("origin")
            for ident in self.acknowledged:
                assert tree.listing(bytes.fromhex(ident)) is not None, f"lost: {ident}"
            for ident in self.rng.sample(sorted(self.acknowledged), min(20, len(self.acknowledged))):
                assert digest(repository, bytes.fromhex(ident)) == self.acknowledged[ident]


def main() -> None:
    """Run it, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.seed)
        return
    with tempfile.TemporaryDirectory(prefix="ijfs-kills-") as place:
        campaign = Campaign(Path(place), arguments.seed)
        try:
            for number in range(1, arguments.rounds + 1):
                campaign.round(number)
                if number % CHECK_EVERY == 0 or number == arguments.rounds:
                    campaign.check()
                    killed = f"{campaign.killed} machines and {campaign.gateways} gateways killed"
                    print(f"{number} rounds: {len(campaign.acknowledged)} acknowledged, {killed}; whole", flush=True)
        finally:
            subprocess.run([sys.executable, RGW, "stop"], check=True, timeout=120)


if __name__ == "__main__":
    main()
