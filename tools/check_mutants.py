"""Change one thing in the engine, run the tests that pass there, see whether one notices: `make check-mutants`.

What no test notices is a hole in the tests, a line that is not needed, or a change that means the same. The last are
listed with their reason in tools/mutants-accepted.txt; any other survivor makes the run fail. docs/testing.md has what
a run found.

Each mutant is run in a copy of the package that PYTHONPATH puts before the installed one, so that tests which start
processes see it too. Which tests pass a line is recorded once, by a trace (kept in .cache until a source or test
changes); the quickest run first, until one fails. A mutant that makes them hang is noticed as well.

mutmut was not taken: it wants the package at the root or under src/, runs tests in forks of one process, and its
switch between mutants is not seen by a process that a test starts.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "engine"
TARGETS = ("storage", "maintenance")
TESTS = "tests/engine"
ACCEPTED = ROOT / "tools" / "mutants-accepted.txt"
CACHE = ROOT / ".cache" / "mutants"

# Ten minutes on two cores.
SAMPLE = 120
# The longest tests are left out once the others of a mutant add up to this; what survives is looked at by a person.
MOST_TEST_S = 10.0

SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: `file` is relative to the package; `start` and `end` are offsets in it, `statement` is a line."""

    file: str
    line: int
    statement: int
    start: int
    end: int
    text: str
    what: str
    source: str

    @property
    def key(self) -> str:
        """What the list of accepted mutants calls it: it stays the same while the line does."""
        return f"{self.file} | {self.source} | {self.what}"


class Outcome(NamedTuple):
    """What became of a mutant: `killed`, `timed out`, `survived`, or `not run` where no test passes the line."""

    mutant: Mutant
    what: str
    by: str


# --- what can be changed


class Finder(ast.NodeVisitor):
    """The mutants of one file."""

    def __init__(self, file: str, text: str) -> None:
        self.found: list[Mutant] = []
        self._file = file
        self._text = text
        self._lines = text.splitlines(keepends=True)
        self._offsets = [0]
        for line in self._lines:
            self._offsets.append(self._offsets[-1] + len(line))
        self._depth = 0
        self._statement = 0
        self.visit(ast.parse(text))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self._statement = node.lineno
        super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._depth += 1
        last = node.body[-1]
        for statement in node.body:
            if statement is last and isinstance(statement, ast.Return):
                if statement.value is not None:
                    self.visit(statement.value)
            else:
                self.visit(statement)
        self._depth -= 1

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Messages; and Python 3.11 does not know where the parts of one stand."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Says what is true anyway."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Compare(self, node: ast.Compare) -> None:
        for at, operator in enumerate(node.ops):
            ops = [*node.ops[:at], SWAPS[type(operator)](), *node.ops[at + 1 :]]
            self._replace(node, ast.Compare(node.left, ops, node.comparators))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._replace(node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._replace(node, node.operand)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add | ast.Sub):
            self._replace(
                node, ast.BinOp(node.left, ast.Sub() if isinstance(node.op, ast.Add) else ast.Add(), node.right)
            )
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, ast.Constant(not node.value))
        elif isinstance(node.value, int):
            self._replace(node, ast.Constant(node.value + 1))

    def visit_Return(self, node: ast.Return) -> None:
        self._drop(node)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._drop(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._drop(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._drop(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._drop(node)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._drop(node)
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def _drop(self, node: ast.stmt) -> None:
        self._add(node, "pass", f"drop `{_short(ast.unparse(node))}`")

    def _replace(self, node: ast.expr, new: ast.expr) -> None:
        text = ast.unparse(new)
        self._add(node, f"({text})", f"`{_short(ast.unparse(node))}` -> `{_short(text)}`")

    def _add(self, node: ast.expr | ast.stmt, text: str, what: str) -> None:
        if not self._depth:
            return  # a module's constants are chosen by measurements, not by tests
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._offset(node.lineno, node.col_offset)
        end = self._offset(node.end_lineno, node.end_col_offset)
        source = self._lines[node.lineno - 1].strip()
        self.found.append(Mutant(self._file, node.lineno, self._statement, start, end, text, what, source))

    def _offset(self, line: int, column: int) -> int:
        """`column` counts bytes, as ast does."""
        return self._offsets[line - 1] + len(self._lines[line - 1].encode()[:column].decode())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."


def sources() -> list[Path]:
    """The files that are changed."""
    return [path for target in TARGETS for path in sorted((ENGINE / "ijfs_engine" / target).glob("*.py"))]


def mutants() -> Iterator[Mutant]:
    """All there are."""
    for path in sources():
        yield from Finder(str(path.relative_to(ENGINE / "ijfs_engine")), path.read_text()).found


# --- which tests pass where

TRACER = """
import json, os, sys, threading, time
import pytest

TARGETS = tuple(os.environ["IJFS_MUTANT_TARGETS"].split(":"))
now, passed, took, failed = set(), {}, {}, set()

def line(frame, event, _):
    if event == "line":
        now.add((frame.f_code.co_filename, frame.f_lineno))
    return line

def call(frame, event, _):
    return line if frame.f_code.co_filename.startswith(TARGETS) else None

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    now.clear()
    began = time.monotonic()
    threading.settrace(call)
    sys.settrace(call)
    try:
        return (yield)
    finally:
        sys.settrace(None)
        threading.settrace(None)
        if item.nodeid not in failed:
            took[item.nodeid] = time.monotonic() - began
            passed[item.nodeid] = sorted(now)

def pytest_runtest_logreport(report):
    if report.failed:
        failed.add(report.nodeid)

def pytest_sessionfinish(session, exitstatus):
    with open(os.environ["IJFS_MUTANT_MAP"], "w") as file:
        json.dump({"passed": passed, "took": took}, file)
"""


class TestMap:
    """Tests by the lines they pass, quickest first."""

    def __init__(self, recorded: dict[str, dict[str, object]], most_s: float) -> None:
        self._most_s = most_s
        self._took: dict[str, float] = recorded["took"]  # type: ignore[assignment]
        self._tests: dict[tuple[str, int], list[str]] = {}
        passed: dict[str, list[tuple[str, int]]] = recorded["passed"]  # type: ignore[assignment]
        for test, lines in passed.items():
            for path, line in lines:
                file = os.path.relpath(path, ENGINE / "ijfs_engine")
                self._tests.setdefault((file, line), []).append(test)

    def of(self, mutant: Mutant) -> tuple[list[str], float]:
        """The tests to run, and how long they take."""
        chosen: list[str] = []
        total = 0.0
        # A `continue` at the end of a branch leaves no trace of its own: the line before it does.
        lines = (mutant.line, mutant.statement, mutant.statement - 1)
        tests = next((found for line in lines if (found := self._tests.get((mutant.file, line)))), [])
        for test in sorted(tests, key=self._took.__getitem__):
            if chosen and total + self._took[test] > self._most_s:
                break
            chosen.append(test)
            total += self._took[test]
        return chosen, total


def record(most_s: float) -> TestMap:
    """Run all tests once under the trace, or take what was recorded of the same sources and tests."""
    digest = hashlib.sha256()
    for path in sorted([*(ENGINE / "ijfs_engine").rglob("*.py"), *(ROOT / TESTS).glob("*.py")]):
        digest.update(path.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / f"{digest.hexdigest()[:16]}.json"
    if not kept.exists():
        print("recording which tests pass which lines, once: a few minutes", flush=True)
        with tempfile.TemporaryDirectory() as place:
            Path(place, "mutant_tracer.py").write_text(TRACER)
            wanted = ":".join(str(ENGINE / "ijfs_engine" / target) for target in TARGETS)
            environment = _environment(Path(place)) | {
                "IJFS_MUTANT_TARGETS": wanted,
                "IJFS_MUTANT_MAP": str(kept) + ".new",
            }
            done = subprocess.run(
                _pytest(Path(place), "-p", "mutant_tracer", TESTS), cwd=ROOT, env=environment, check=False
            )
            if done.returncode:
                print("what fails as it is, is left out", flush=True)
        os.replace(str(kept) + ".new", kept)
    return TestMap(json.loads(kept.read_text()), most_s)


# --- one mutant


def run(mutant: Mutant, package: Path, tests: TestMap) -> Outcome:
    """Change the copy of the package at `package`, run the tests, and change it back."""
    chosen, seconds = tests.of(mutant)
    if not chosen:
        return Outcome(mutant, "not run", "")
    path = package / "ijfs_engine" / mutant.file
    text = path.read_text()
    path.write_text(text[: mutant.start] + mutant.text + text[mutant.end :])
    try:
        command = _pytest(package, "-x", "--no-header", "--tb=no", *chosen)
        with subprocess.Popen(
            command, cwd=ROOT, env=_environment(package), stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                out, _ = process.communicate(timeout=20 + 4 * seconds)
            except subprocess.TimeoutExpired:
                return Outcome(mutant, "timed out", chosen[0])
            finally:
                _end_group(process.pid)
    finally:
        path.write_text(text)
    if process.returncode == 0:
        return Outcome(mutant, "survived", f"{len(chosen)} tests")
    if process.returncode == 4:
        sys.exit(f"pytest does not know one of {chosen}: remove {CACHE}")
    failed = [line for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return Outcome(mutant, "killed", failed[0].partition(" - ")[0] if failed else "at the start")


def _end_group(leader: int) -> None:
    """End what a test left running: it has the process group of its pytest."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _unmount_below(place: str) -> None:
    """A test that was ended in its middle leaves what it mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        where = line.split()[1]
        if where.startswith(place):
            subprocess.run(["umount", "--lazy", where], check=False)


def _pytest(place: Path, *arguments: str) -> list[str]:
    """The command; its temporary files are in `place`, where no other pytest tidies up."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={place}/tmp", *arguments]


def _environment(first: Path) -> dict[str, str]:
    """`first` comes before the installed package; hypothesis does not remember what a mutant failed at."""
    return os.environ | {
        "PYTHONPATH": f"{first}:{ENGINE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "IJFS_TEST_PATIENCE": "4",  # two at a time: what is only slow has not noticed anything
        "HYPOTHESIS_STORAGE_DIRECTORY": tempfile.gettempdir() + "/ijfs-mutants-hypothesis",
    }


# --- the run


def run_all(chosen: Sequence[Mutant], tests: TestMap, jobs: int) -> list[Outcome]:
    """Each of them, on copies of the package, one a job."""
    with tempfile.TemporaryDirectory(prefix="ijfs-mutants-", ignore_cleanup_errors=True) as place:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            shutil.copytree(
                ENGINE / "ijfs_engine",
                Path(place, str(job), "ijfs_engine"),
                ignore=shutil.ignore_patterns("__pycache__", "*.pyx", "*.h", "*.c"),
            )
            copies.put(Path(place, str(job)))

        def one(mutant: Mutant) -> Outcome:
            package = copies.get()
            try:
                outcome = run(mutant, package, tests)
            finally:
                copies.put(package)
            print(f"{outcome.what:10} {mutant.file}:{mutant.line}  {mutant.what}  {outcome.by}", flush=True)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(one, chosen))
        _unmount_below(place)
        return outcomes


def accepted() -> dict[str, str]:
    """Reasons by mutant: lines of `file | source line | change | reason`."""
    lines = [line for line in ACCEPTED.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {key: reason for key, _, reason in (line.rpartition(" | ") for line in lines)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sample", type=int, default=SAMPLE, help="how many; 0 for all (hours)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="to draw the same again")
    parser.add_argument("--only", default="", help="files whose path has this in it: storage/refs.py")
    parser.add_argument("--seconds", type=float, default=MOST_TEST_S, help="of tests for each, the quickest first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    tests, reasons = record(options.seconds), accepted()
    everything = [mutant for mutant in mutants() if options.only in mutant.file]
    left = [mutant for mutant in everything if mutant.key not in reasons]
    gone = [] if options.only else sorted(reasons.keys() - {mutant.key for mutant in everything})
    count = min(options.sample or len(left), len(left))
    chosen = random.Random(options.seed).sample(left, count)
    print(
        f"{count} of {len(everything)} changes ({len(everything) - len(left)} accepted), --seed {options.seed}",
        flush=True,
    )
    outcomes = run_all(chosen, tests, options.jobs)
    counts = {
        what: sum(one.what == what for one in outcomes) for what in ("killed", "timed out", "survived", "not run")
    }
    print("\n" + ", ".join(f"{number} {what}" for what, number in counts.items()))
    for one in outcomes:
        if one.what in ("survived", "not run"):
            print(f"{one.what}, {one.mutant.file}:{one.mutant.line}\n    {one.mutant.key}")
    for key in gone:
        print(f"accepted, and not there any more: {key}")
    sys.exit(1 if counts["survived"] or counts["not run"] or gone else 0)


if __name__ == "__main__":
    main()
