"""Work on all cores with bounded memory: tasks start while few are under way, and their results are taken in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")


def cores() -> int:
    """Processors this process may run on."""
    return max(1, len(os.sched_getaffinity(0)))


def thread_pool(workers: int, name: str) -> ThreadPoolExecutor:
    """A pool of threads. What makes pools is loaded here, late: that takes 4 ms, most of it `logging`."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(workers, thread_name_prefix=name)


class Pipeline:
    """A thread pool whose `submit` waits while more than two tasks per worker are unfinished.

    A task holds a few leaves' worth of buffers: that is what bounds the memory of a save. After a task has failed,
    `submit` raises what it raised: nothing is begun that cannot be finished.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()
        self._pool: ThreadPoolExecutor | None = None
        self._room = threading.Semaphore(2 * self.workers)
        self._failure: BaseException | None = None

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start a task as soon as there is room."""
        self._room.acquire()
        if self._failure is not None:
            self._room.release()
            raise self._failure
        try:
            if self._pool is None:
                self._pool = thread_pool(self.workers, "ijfs-ingest")
            future = self._pool.submit(call, *args, **kwargs)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[T]) -> None:
        if not future.cancelled():
            self._failure = self._failure or future.exception()
        self._room.release()

    def close(self) -> None:
        """Wait for what runs, drop what waits. Safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
