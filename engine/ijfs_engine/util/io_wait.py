"""How long a thread's reads have waited for the place where the bytes are: the pager sets its number of threads by it.

Only the requests themselves are counted: what a thread waits for a processor or for the interpreter says nothing about
the place. (Counting whole reads was tried: beside another busy program the pager had 32 threads for a warm page cache.)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class _Waited(threading.local):
    seconds = 0.0


_waited = _Waited()


def io_waited_s() -> float:
    """Seconds that requests of the calling thread have waited, ever."""
    return _waited.seconds


def simulate_latency(delay_s: float) -> None:
    """Wait as a request to a place that is so far away would."""
    if delay_s:
        time.sleep(delay_s)
        _waited.seconds += delay_s


def add_io_wait(seconds: float) -> None:
    """Count a request of the calling thread that has waited so long."""
    _waited.seconds += seconds


@contextlib.contextmanager
def waited_for() -> Iterator[None]:
    """Count what the block waits for as a request of the calling thread."""
    began = time.monotonic()
    try:
        yield
    finally:
        add_io_wait(time.monotonic() - began)
