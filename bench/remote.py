"""Remotes over a link with a delay: push, clone, restore from a cold cache, gc.

python -m bench.remote [--quick] [--only push,clone,restore,gc] [--json FILE]

The store is Ceph's gateway on loopback (tools/rgw.py), reached through bench/delay_proxy.py: each way takes half of the
delay, and all connections share a link of 1 Gbit/s. The gateway, the proxy and ijfs share this machine's processors.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench import common, live_programs
from ijfs.live.process import fork_request
from ijfs_engine import Repository, import_directory

RGW = Path(__file__).parents[1] / "tools/rgw.py"
DELAYS_MS = (0, 20, 50)
LINK_MBIT = 1000
HEAD = ["", "delay", "seconds", "requests", "sent MB", "received MB", ""]


class Bench:
    """The store, a place to work in, and the rows so far."""

    def __init__(self, place: Path, *, quick: bool) -> None:
        self.place = place
        self.quick = quick
        self.rows: list[list[str]] = []
        self.page: list[dict[str, Any]] = []
        self._buckets = 0
        done = subprocess.run([sys.executable, RGW, "start"], check=True, capture_output=True, text=True)
        os.environ.update(dict(line.split("=", 1) for line in done.stdout.splitlines()))
        self.endpoint = os.environ["AWS_ENDPOINT_URL"]

    def bucket(self) -> str:
        """A new one; its URL."""
        import obstore
        from obstore.store import S3Store

        self._buckets += 1
        name = f"bench-{os.getpid()}-{self._buckets}"
        store = S3Store(name, client_options={"allow_http": True})
        url = obstore.sign(store, "PUT", "", timedelta(minutes=1))
        urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
        return f"s3://{name}/tree"

    @contextlib.contextmanager
    def far(self, delay_ms: int) -> Iterator[None]:
        """The store that far away for the block."""
        to = self.endpoint.removeprefix("http://")
        command = [sys.executable, "-m", "bench.delay_proxy", "--to", to, "--delay-ms", str(delay_ms),
                   "--mbit", str(LINK_MBIT)]  # fmt: skip
        proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert proxy.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.stdout.readline().strip()}"
        try:
            yield
        finally:
            os.environ["AWS_ENDPOINT_URL"] = self.endpoint
            proxy.kill()
            proxy.wait()
            proxy.stdout.close()

    def note(self, what: str, delay_ms: int, seconds: float, more: str = "", **counts: int) -> None:
        """One row."""
        self.page.append({"what": what, "delay_ms": delay_ms, "seconds": seconds, "more": more, **counts})
        sizes = [f"{counts[key] / 1e6:,.2f}" if key in counts else "" for key in ("sent", "received")]
        row = [what, f"{delay_ms} ms", f"{seconds:.2f}", str(counts.get("requests", "")), *sizes, more]
        self.rows.append(row)
        print("  ".join(row), flush=True)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a program of 256 MiB, a tree of 100 snapshots")
    parser.add_argument("--only", default="push,clone,restore,gc")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    common.compile_modules()
    with tempfile.TemporaryDirectory(prefix="ijfs-bench-remote-") as place:
        bench = Bench(Path(place), quick=chosen.quick)
        try:
            for name in chosen.only.split(","):
                {"push": push, "clone": clone, "restore": restore, "gc": gc}[name](bench)
            machine = common.machine(Path(place))
        finally:
            subprocess.run([sys.executable, RGW, "stop"], check=True)
    print(f"\n{machine}\nload {os.getloadavg()[0]:.0f}\n\n{common.table(HEAD, bench.rows)}")
    if chosen.json:
        common.write_json(chosen.json, {"machine": machine, "rows": bench.page})


def push(bench: Bench) -> None:
    """A first snapshot of 256 MiB, and a second one of which 1% is new."""
    rng = random.Random(1)
    files = bench.place / "files"
    files.mkdir()
    size = 256 << 20
    (files / "data").write_bytes(os.urandom(size))
    for delay in DELAYS_MS:
        path = bench.place / f"push{delay}"
        with Repository.init(path) as repository, bench.far(delay):
            repository.remotes.add("origin", bench.bucket())
            for what in ("first push, 256 MiB", "second push, 1% new"):
                head = repository.refs.branches().get("main")
                saved = import_directory(repository, files, parents=[head] if head else [], branch="main")
                began = time.perf_counter()
                report = repository.remotes.push("origin", {"branch/main": saved.id})
                seconds = time.perf_counter() - began
                more = f"{report.sent / saved.added:.2f} of what is new" if saved.added else ""
                bench.note(what, delay, seconds, more, requests=report.requests, sent=report.sent)
                with (files / "data").open("r+b") as data:
                    data.seek(rng.randrange(size // 2))
                    data.write(rng.randbytes(size // 100))
        shutil.rmtree(path)
    shutil.rmtree(files)


def clone(bench: Bench) -> None:
    """The metadata of a tree of 1,000 snapshots that were pushed ten at a time."""
    count = 100 if bench.quick else 1000
    files = bench.place / "files"
    files.mkdir()
    for number in range(50):
        (files / f"f{number}").write_bytes(os.urandom(20_000))
    url = bench.bucket()
    with Repository.init(bench.place / "tree") as repository:
        repository.remotes.add("origin", url)
        for number in range(count):
            (files / f"f{number % 50}").write_bytes(os.urandom(20_000))
            head = repository.refs.branches().get("main")
            saved = import_directory(
                repository, files, parents=[head] if head else [], branch="main", message=f"step {number} of many"
            )
            if number % 10 == 9:
                repository.remotes.push("origin", {"branch/main": saved.id})
    for delay in DELAYS_MS:
        path = bench.place / f"clone{delay}"
        with bench.far(delay), Repository.init(path) as other:
            other.remotes.add("origin", url)
            began = time.perf_counter()
            report = other.remotes.fetch("origin")
            seconds = time.perf_counter() - began
            assert report.new == count
            counts = {"requests": report.requests, "received": report.received}
            bench.note(f"clone of {count} snapshots", delay, seconds, **counts)
            began = time.perf_counter()
            ident = other.resolve("origin/main~50")
            entry = other.reader().lookup(other.snapshot(ident).root, "files/f7")
            assert len(other.reader().open(entry).read(0, entry.size)) == 20_000
            bench.note("then one file of one of them", delay, time.perf_counter() - began)
        shutil.rmtree(path)
    shutil.rmtree(files)


def restore(bench: Bench) -> None:
    """A program restored from a cold cache: until it answers, until 64 MiB of it were touched, until all is in."""
    mebibytes = 256 if bench.quick else 1024
    url = bench.bucket()
    home = bench.place / "home"
    Repository.init(home).close()
    program = live_programs.Boxed(home, "lab", mebibytes)
    program.ask_to_touch()
    saved = bytes.fromhex(program.save().snapshot)
    program.stop()
    for _ in range(2):  # what is touched first is learnt
        live_programs.restore(home, saved.hex(), touch=True)
    fork_request.dismiss(home)
    with Repository.open(home) as repository:
        repository.remotes.add("origin", url)
        repository.remotes.push("origin", {"branch/lab": saved})
    for delay in DELAYS_MS:
        path = bench.place / f"restore{delay}"
        with bench.far(delay):
            with Repository.init(path) as other:
                other.remotes.add("origin", url)
                other.remotes.fetch("origin")
                stored = other.remotes.du("origin").needed
            found = live_programs.restore(path, "origin/lab", touch=True)
            fork_request.dismiss(path)
        assert found.touched_s is not None
        share = stored / found.all_in_s / (LINK_MBIT * 125_000)
        bench.note(f"restore of {mebibytes} MiB, answers", delay, found.answers_s)
        bench.note("64 MiB touched", delay, found.touched_s)
        bench.note("all in", delay, found.all_in_s, f"{share:.2f} of the link", received=stored)
        shutil.rmtree(path)


def gc(bench: Bench) -> None:
    """A store with many packs and chunks, looked through and swept."""
    files = bench.place / "files"
    files.mkdir()
    url = bench.bucket()
    pushes = 5 if bench.quick else 20
    with Repository.init(bench.place / "gc") as repository:
        repository.remotes.add("origin", url)
        for number in range(pushes):
            for name in range(200):
                (files / f"f{name}").write_bytes(os.urandom(20_000))
            saved = import_directory(repository, files, branch=f"b{number}")
            repository.remotes.push("origin", {f"branch/b{number}": saved.id})
        for ident, _ in repository.remotes.operations("origin", pushes // 2):
            repository.remotes.undo("origin", ident.hex())
        for delay in DELAYS_MS:
            with bench.far(delay):
                began = time.perf_counter()
                report = repository.remotes.gc("origin", grace_s=0)
                more = f"{report.packs_marked} marked, {report.packs_removed} removed of {2 * pushes} packs"
                bench.note("gc", delay, time.perf_counter() - began, more, requests=report.requests)
    shutil.rmtree(files)


if __name__ == "__main__":
    main()
