"""The order of steps that takes a program's GPU state into its host memory and back, and how each is undone.

All processes are locked before the first is checkpointed: a process that still runs could wait for one that is
already gone. A failure at any step undoes those before it in reverse, so that the program goes on; where undoing
fails too, the error names the state of every process. Called by save and restore, in a worker thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import msgspec

from ijfs.live.gpu.driver import CheckpointDriver, DriverError, GpuMap, ProcessState
from ijfs_engine.errors import IjfsError

LOCK_TIMEOUT_MS = 10_000
"""A lock takes 1 ms when the device is idle; NCCL kernels that wait for a peer can hold it for ever."""


class GpuSuspendError(IjfsError):
    """The GPU state could not be taken; the program runs on as before."""


class GpuLostError(IjfsError):
    """A step failed and undoing the others failed too; the message has the state of every process."""

    default_hint = "the older snapshots are whole: stop this program and `ijfs restore` one of them"


class GpuPhase(msgspec.Struct, frozen=True):
    """One driver call: which, on which process (host pid), how long."""

    operation: str
    pid: int
    seconds: float


class GpuSteps:
    """Drives a set of CUDA processes (host pids) through lock, checkpoint, restore, unlock; timing each call."""

    def __init__(self, driver: CheckpointDriver, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._driver = driver
        self._clock = clock
        self.phases: list[GpuPhase] = []
        self.seconds: dict[str, float] = {}
        """Operation → seconds that the whole set took for it; less than the sum of `phases` where calls overlap."""

    def suspend(self, pids: Sequence[int], *, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> None:
        """RUNNING → CHECKPOINTED for all of `pids`, or for none (GpuSuspendError; GpuLostError if undoing failed)."""
        try:
            self._in_turn("lock", pids, lambda pid: self._driver.lock(pid, lock_timeout_ms))
            self._at_once("checkpoint", pids, self._driver.checkpoint)
        except DriverError as error:
            self._undo(pids, error)
            raise GpuSuspendError(f"{error}; the program runs on", hint=error.hint) from error

    def resume(self, pids: Sequence[int], *, gpu_map: GpuMap | None = None) -> None:
        """CHECKPOINTED → RUNNING for all of `pids`. None is unlocked before all have their memory: their first call
        may address a peer. GpuLostError names what each is left as when one fails."""
        try:
            self._at_once("restore", pids, lambda pid: self._driver.restore(pid, gpu_map))
            self._in_turn("unlock", pids, self._driver.unlock)
        except DriverError as error:
            raise GpuLostError(f"{error}; {self.describe(pids)}", hint=error.hint) from error

    @contextmanager
    def suspended(self, pids: Sequence[int], *, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> Iterator[None]:
        """The body runs with all of `pids` checkpointed; they are running again after it, whatever it raised."""
        self.suspend(pids, lock_timeout_ms=lock_timeout_ms)
        try:
            yield
        finally:
            self.resume(pids)

    def describe(self, pids: Sequence[int]) -> str:
        """The state of each process in words, for an error that has to name it."""
        return ", ".join(f"process {pid} is {self._state_word(pid)}" for pid in pids)

    def _undo(self, pids: Sequence[int], cause: DriverError) -> None:
        try:
            for pid in reversed(pids):
                self._bring_back(pid)
        except DriverError as error:
            raise GpuLostError(f"{cause}, and undoing it failed: {error}; {self.describe(pids)}") from cause

    def _bring_back(self, pid: int) -> None:
        state = self._driver.state(pid)
        if state is ProcessState.CHECKPOINTED:
            self._timed("restore", pid, partial(self._driver.restore, pid))
            state = ProcessState.LOCKED
        if state is ProcessState.LOCKED:
            self._timed("unlock", pid, partial(self._driver.unlock, pid))

    def _state_word(self, pid: int) -> str:
        try:
            state = self._driver.state(pid)
        except DriverError as error:
            return f"in an unknown state ({error.code})"
        return "without CUDA" if state is None else state.name.lower()

    def _in_turn(self, operation: str, pids: Sequence[int], call: Callable[[int], None]) -> None:
        """The call for one pid after the other; each takes about a millisecond."""
        begin = self._clock()
        for pid in pids:
            self._timed(operation, pid, partial(call, pid))
        self.seconds[operation] = self._clock() - begin

    def _at_once(self, operation: str, pids: Sequence[int], call: Callable[[int], None]) -> None:
        """The call for every pid at once (each has its own link); waits for all, then raises the first failure."""
        begin = self._clock()
        with ThreadPoolExecutor(max_workers=max(1, len(pids))) as pool:
            futures = [pool.submit(self._timed, operation, pid, partial(call, pid)) for pid in pids]
        for future in futures:
            future.result()
        self.seconds[operation] = self._clock() - begin

    def _timed(self, operation: str, pid: int, call: Callable[[], None]) -> None:
        begin = self._clock()
        call()
        self.phases.append(GpuPhase(operation, pid, self._clock() - begin))
