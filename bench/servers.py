"""Deployments measured: `python -m bench.servers [--engine vllm MODEL ARGUMENTS…]`, as root; docs/servers.md quotes it.

Without an engine it is a small server that loads for a second and holds 200 MiB. One run has it all: from the command
until it is ready, one save, wakes from memory and from disk until a request has its answer, two forks. Each answer is
compared with the first one. A table comes out, and with `--json FILE` the same for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ijfs.deployments import client, golden
from ijfs.deployments.backend import tag_of
from ijfs.deployments.making import specified
from ijfs.deployments.records import DeploymentInfo, DeploymentSpec
from ijfs.live.client import api
from ijfs.live.model.records import Hooks, HostPort
from ijfs.live.process import fork_request
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

NAME = "server"
PORT = 8000
HERE = f"http://127.0.0.1:{PORT}"

SMALL = """
import http.server, sys, time
weights = bytearray(b"weights " * (25 << 20))
time.sleep(1)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(weights[:7])
    do_POST = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


class Figures:
    """Rows of (what, seconds of each turn, note), printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, seconds: Sequence[float], note: str = "") -> None:
        """Print a row: the median, and all of them."""
        turns = " ".join(f"{value:.2f}" for value in seconds)
        print(f"| {what:52} | {statistics.median(seconds):8.2f} | {turns:24} | {note} |", flush=True)
        self.rows.append({"what": what, "seconds": list(seconds), "note": note})


class Bench:
    """One deployment in a repository of its own."""

    def __init__(self, repo: Path, spec: DeploymentSpec, question: str, figures: Figures) -> None:
        self._repo, self._spec, self._question = repo, spec, question
        self._figures = figures
        self._first = ""

    def run(self, turns: int) -> None:
        """All of it, in this order."""
        info = client.deploy(self._repo, self._spec)
        self._say("from its command until it is ready", [info.start_s or 0.0])
        self._say("… and a snapshot of it", [info.wake_s or 0.0], info.note)
        self._first = self._answer(info)
        self._save()
        self._say("parked in memory, until a request has its answer", [self._woken("memory") for _ in range(turns)])
        seconds = [self._woken("disk") for _ in range(turns)]
        self._say("parked on disk, until a request has its answer", seconds, self._steps())
        self._forks()

    def close(self) -> None:
        """End everything."""
        with suppress(IjfsError):
            client.undeploy(self._repo, NAME)
        fork_request.dismiss(self._repo)

    def _save(self) -> None:
        with api.connect(self._repo, NAME) as keeper:
            saved = keeper.save("measured")
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in saved.phases.items() if seconds >= 0.01)
        self._say("frozen in a save", [saved.frozen_s], f"image {saved.image_bytes / 1e9:.2f} GB; {steps}")

    def _woken(self, depth: str) -> float:
        """Seconds from a request to its answer, of one that rests."""
        client.park(self._repo, NAME, "disk" if depth == "disk" else "memory")
        info = client.describe(self._repo, NAME)
        assert info.state == depth, info
        began = time.perf_counter()
        self._compare(self._answer(info))
        seconds = time.perf_counter() - began
        note = client.describe(self._repo, NAME).note
        assert not note, note
        return seconds

    def _steps(self) -> str:
        """Of the last wake."""
        phases = client.describe(self._repo, NAME).phases
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items() if seconds >= 0.01)

    def _forks(self) -> None:
        """Two copies of its snapshot at once, beside nothing else, until both have answered."""
        client.park(self._repo, NAME, "disk")
        began = time.perf_counter()
        forks = api.fork(self._repo, tag_of(NAME), ["left", "right"])
        for fork in forks:
            self._compare(golden.answer_of(self._question, fork.relay[0].host))
        seconds = time.perf_counter() - began
        steps = ", ".join(f"{name} {value:.2f}" for name, value in forks[0].phases.items() if value >= 0.01)
        self._say("forked × 2, until both have answered", [seconds], f"one of them: {steps}")
        for fork in forks:
            with api.connect(self._repo, fork.name) as keeper:
                keeper.stop(timeout_s=0.1)

    def _answer(self, info: DeploymentInfo) -> str:
        return golden.answer_of(self._question, info.port)

    def _compare(self, answer: str) -> None:
        assert answer == self._first, f"{answer} is not {self._first}"

    def _say(self, what: str, seconds: Sequence[float], note: str = "") -> None:
        self._figures.add(what, seconds, note)


def wanted(options: argparse.Namespace) -> tuple[DeploymentSpec, str]:
    """What is deployed, and what it is asked."""
    if options.engine:
        spec = specified(
            NAME,
            [word for word in options.command if word != "--"],
            engine_name=options.engine,
            idle_s=None,
            disk_s=None,
            env=dict(word.split("=", 1) for word in options.env),
        )
        return spec, spec.verify
    command = [sys.executable, "-c", SMALL, str(PORT)]
    hooks = Hooks(ready=(f"{HERE}/",))
    port = HostPort(PORT, options.port)
    return specified(NAME, command, port=port, hooks=hooks, idle_s=None, disk_s=None), f"{HERE}/"


def timed(call: Callable[[], None]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def last_lines(repo: Path) -> str:
    """The ends of all logs, for a run that failed."""
    logs = sorted((*repo.glob("deployments/*.log"), *repo.glob("live/**/*.log")))
    ends = ("\n".join(log.read_text(errors="replace").splitlines()[-25:]) for log in logs)
    return "\n".join(f"--- {log}\n{end}" for log, end in zip(logs, ends, strict=True))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["vllm", "sglang"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--port", type=int, default=18000, help="where the small server is reached")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    figures = Figures()
    spec, question = wanted(options)
    with tempfile.TemporaryDirectory(prefix="ijfs-bench-servers-") as directory:
        repo = Path(directory) / "repo"
        Repository.init(repo).close()
        bench = Bench(repo, spec, question, figures)
        try:
            whole = timed(lambda: bench.run(options.turns))
        except BaseException:
            print(last_lines(repo), file=sys.stderr)
            raise
        finally:
            bench.close()
    print(f"{whole:.0f} s on {os.cpu_count()} processors")
    if options.json:
        options.json.write_text(json.dumps(figures.rows, indent=1))


if __name__ == "__main__":
    main()
