"""Ranges of objects from a store that is slow, fails now and then, or stalls: a request that takes much longer than
others did is asked a second time, and who answers first is taken. (Dean and Barroso, "The Tail at Scale", 2013: hedged
requests.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Final

from ijfs_engine.remote.bucket import Bucket, MissingObjectError, RemoteError

_WORKERS: Final = 128
_LEAST_S: Final = 0.25
"""No request is asked again before: a busy processor alone makes one take as long."""
_TIMES: Final = 4
"""So many times what a request takes on average is much longer."""
_SILENCE_S: Final = 30.0
"""A store that says nothing for so long is gone, to who waits for a page."""
_PROBE_S: Final = 1.0
"""A store that was gone at the last request is asked again after so long, and given as long: thousands of pages may be
asked for, one by one."""
_TRIES: Final = 4
_PAUSE_S: Final = 0.1


class RangeReader:
    """Reads ranges of one store's objects. Safe to use from several threads."""

    def __init__(self, bucket: Bucket, *, silence_s: float = _SILENCE_S) -> None:
        self._bucket = bucket
        self._silence_s = silence_s
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="ijfs-range")
        self._lock = Lock()
        self._usual_s = _LEAST_S
        self._gone_at: float | None = None
        self.hedged = 0
        """Requests that were asked a second time."""

    def close(self) -> None:
        """Let go; what still waits for an answer is left to itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes of an object. MissingObjectError; RemoteError for a store that fails again and again, or is silent."""
        gone_at = self._gone_at
        if gone_at is not None and time.monotonic() - gone_at < _PROBE_S:
            raise self._silent()
        try:
            data = self._read(path, start, end, self._silence_s if gone_at is None else _PROBE_S)
        except MissingObjectError:
            raise
        except RemoteError:
            self._gone_at = time.monotonic()
            raise
        self._gone_at = None
        return data

    def _silent(self) -> RemoteError:
        return RemoteError(f"{self._bucket.url} does not answer", hint="is it there? `ijfs fetch` asks it")

    def _read(self, path: str, start: int, end: int, patience_s: float) -> bytes:
        deadline = time.monotonic() + patience_s
        for attempt in range(_TRIES):
            try:
                return self._hedged(lambda: self._timed(path, start, end), deadline)
            except MissingObjectError:
                raise
            except RemoteError:
                left = deadline - time.monotonic()
                if attempt == _TRIES - 1 or left <= 0:
                    raise
                time.sleep(min(_PAUSE_S * 2**attempt, left))
        raise AssertionError("unreachable")

    def _hedged(self, ask: Callable[[], bytes], deadline: float) -> bytes:
        asked: list[Future[bytes]] = [self._pool.submit(ask)]
        patience = max(_LEAST_S, _TIMES * self._usual_s)
        pending: set[Future[bytes]] = set(asked)
        while True:
            left = deadline - time.monotonic()
            done, pending = wait(pending, min(patience, max(left, 0)), FIRST_COMPLETED)
            for future in done:
                if future.exception() is None or not pending:
                    return future.result()
            if left <= 0:
                raise self._silent()
            if not done and len(asked) == 1:
                self.hedged += 1
                asked.append(self._pool.submit(ask))
                pending.add(asked[-1])
                patience = self._silence_s

    def _timed(self, path: str, start: int, end: int) -> bytes:
        began = time.monotonic()
        data = self._bucket.get_range(path, start, end)
        with self._lock:
            self._usual_s += (time.monotonic() - began - self._usual_s) / 8
        return data
