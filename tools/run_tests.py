#!/usr/bin/env python3
"""Run the tests in two rows side by side, as `make test` does: most of them wait, and one row leaves a processor idle.

    tools/run_tests.py                all tests, in two rows where there are two processors
    tools/run_tests.py ARGUMENTS…     one pytest with these arguments

The first row is shown as it runs, the second when it has ended. Exits with 0 when both passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Final

SECOND_ROW: Final = ("jupyter", "live", "mcp", "places", "programs", "serve")
"""The directories of the second row, half of the time; those that are not named here are in the first."""

TESTS: Final = Path("tests")


def main(arguments: list[str]) -> int:
    """Both rows; their statuses as one."""
    os.chdir(Path(__file__).parent.parent)
    if arguments or len(os.sched_getaffinity(0)) < 2:
        return subprocess.run(_pytest(arguments), check=False).returncode
    second = [TESTS / name for name in SECOND_ROW]
    first = [path.parent for path in TESTS.glob("*/test_*.py") if path.parent not in second]
    with tempfile.TemporaryFile() as kept:
        rows = [_start("first", without=second), _start("second", without=first, output=kept)]
        statuses = [_ended(row) for row in rows]
        kept.seek(0)
        print("\nThe second row:", flush=True)
        sys.stdout.buffer.write(kept.read())
        sys.stdout.flush()
    return next((status for status in statuses if status), 0)


def _pytest(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


def _start(row: str, *, without: list[Path], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """A pytest that passes over `without`; each row remembers for itself what failed (`--last-failed`)."""
    ignored = [f"--ignore={path}" for path in sorted(set(without))]
    arguments = ["--override-ini", f"cache_dir=.pytest_cache/{row}", *ignored]
    stdin = None if output is None else subprocess.DEVNULL
    return subprocess.Popen(_pytest(arguments), stdin=stdin, stdout=output, stderr=output)


def _ended(row: subprocess.Popen[bytes]) -> int:
    """Its exit status. A terminal's ^C reaches the rows themselves, which then clean up: they are waited for."""
    while True:
        try:
            return row.wait()
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
