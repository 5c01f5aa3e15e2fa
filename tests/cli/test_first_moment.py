"""The first moment of a program: how long it is looked at, by real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from waiting import patient

from ijfs.cli.first_moment import RUN, Look, ends

COMPUTES = "import time; print(flush=True); end = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
WAITS = "import time; print(flush=True); time.sleep(1000)"


@contextmanager
def running(code: str) -> Iterator[int]:
    """A Python that has said that it is at it; its pid."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_what_computes_is_looked_at_until_it_ends() -> None:
    with running(COMPUTES) as pid:
        assert ends(pid, Look(0.0, patient(60)))


def test_what_waits_is_looked_at_no_longer_than_anything() -> None:
    with running(WAITS) as pid:
        assert not ends(pid, RUN)


def test_what_ended_before_it_was_looked_at_has_ended() -> None:
    with running("print()") as pid:
        assert ends(pid, Look(patient(60), 0.0))
    assert ends(pid, RUN)
