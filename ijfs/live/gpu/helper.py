"""The process that holds the CUDA driver: `python -m ijfs.live.gpu.helper FD`, one per keeper that needs it.

It stays up: initialising the driver takes seconds, a call on it milliseconds. Requests and answers are JSON lines on
the socket it is given; each request runs in a thread of its own, so that several processes' copies overlap. It exits
when the socket closes, that is, with its keeper. `DriverProcess` is the keeper's side and speaks `CheckpointDriver`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import Any

from ijfs.live.gpu.driver import (
    CheckpointDriver,
    CudaDriver,
    DriverError,
    DriverUnavailableError,
    GpuMap,
    ProcessState,
)
from ijfs_engine.errors import IjfsError

START_TIMEOUT_S = 60.0
"""cuInit took 0.3–4 s on an H200 machine; one with eight GPUs and no persistence mode takes tens of seconds."""

CALL_TIMEOUT_S = 600.0
"""Longer than any copy: 100 GB at the slowest device→host rate seen (1.5 GB/s) takes 70 s."""


class DriverProcess:
    """The driver in a process of its own, with the interface of `CheckpointDriver`. Thread-safe; close it when done."""

    def __init__(self, argv: list[str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        command = argv or [sys.executable, "-m", "ijfs.live.gpu.helper"]
        self._process = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("r", encoding="utf-8")
        self._waiting: dict[int, Future[Any]] = {}
        self._ids = count(1)
        self._guard = threading.Lock()
        self._ready: Future[Any] = Future()
        self._waiting[0] = self._ready
        self._reader = threading.Thread(target=self._read_answers, name="gpu-helper-answers", daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the driver is initialised. Raises DriverUnavailableError where there is none."""
        try:
            self._ready.result(timeout_s)
        except TimeoutError as error:
            raise DriverUnavailableError(f"the CUDA driver did not start within {timeout_s:.0f} s") from error

    def state(self, pid: int) -> ProcessState | None:
        answer = self._call("state", pid)
        return None if answer is None else ProcessState(answer)

    def lock(self, pid: int, timeout_ms: int) -> None:
        self._call("lock", pid, timeout_ms, limit_s=timeout_ms / 1000 + 30)

    def checkpoint(self, pid: int) -> None:
        self._call("checkpoint", pid)

    def restore(self, pid: int, gpu_map: GpuMap | None = None) -> None:
        self._call("restore", pid, dict(gpu_map) if gpu_map else None)

    def unlock(self, pid: int) -> None:
        self._call("unlock", pid)

    def close(self) -> None:
        """End the helper; processes that it checkpointed stay as they are."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._lines.close()
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _call(self, verb: str, *args: Any, limit_s: float = CALL_TIMEOUT_S) -> Any:
        self.wait_ready()
        future: Future[Any] = Future()
        with self._guard:
            number = next(self._ids)
            self._waiting[number] = future
            try:
                self._socket.sendall(json.dumps([number, verb, args]).encode() + b"\n")
            except OSError as error:
                self._waiting.pop(number, None)
                raise DriverError(verb, args[0], "HELPER_GONE", hint=_HELPER_HINT) from error
        try:
            return future.result(limit_s)
        except TimeoutError as error:
            raise DriverError(verb, args[0], "NO_ANSWER", hint=f"no answer within {limit_s:.0f} s") from error

    def _read_answers(self) -> None:
        try:
            for line in self._lines:
                number, value, failure = json.loads(line)
                self._settle(self._waiting.pop(number, None), value, failure)
        except (OSError, ValueError):
            pass
        self._fail_the_rest()

    @staticmethod
    def _settle(future: Future[Any] | None, value: Any, failure: dict[str, Any] | None) -> None:
        if future is None:
            return
        if failure is None:
            future.set_result(value)
        elif "code" in failure:
            future.set_exception(
                DriverError(failure["operation"], failure["pid"], failure["code"], hint=failure["hint"])
            )
        else:
            future.set_exception(DriverUnavailableError(failure["message"], hint=failure["hint"]))

    def _fail_the_rest(self) -> None:
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(
                    DriverUnavailableError("the process that holds the CUDA driver ended", hint=_HELPER_HINT)
                )
        self._waiting.clear()


_HELPER_HINT = "look at the keeper's log; the next call starts a new helper"


def serve(driver: CheckpointDriver, channel: socket.socket) -> None:
    """Answer requests until the other side closes."""
    writing = threading.Lock()

    def answer(number: int, value: Any = None, failure: dict[str, Any] | None = None) -> None:
        with writing:
            channel.sendall(json.dumps([number, value, failure]).encode() + b"\n")

    def run(number: int, verb: str, args: list[Any]) -> None:
        try:
            answer(number, getattr(driver, verb)(*args))
        except IjfsError as error:
            answer(number, failure=_describe(error))
        except Exception as error:  # a fault of ours: whoever waits must hear of it
            answer(number, failure={"message": f"the helper failed in {verb}: {error!r}", "hint": _HELPER_HINT})

    answer(0)
    for line in channel.makefile("r", encoding="utf-8"):
        number, verb, args = json.loads(line)
        threading.Thread(target=run, args=(number, verb, args), daemon=True).start()


def _describe(error: IjfsError) -> dict[str, Any]:
    if isinstance(error, DriverError):
        return {"operation": error.operation, "pid": error.pid, "code": error.code, "hint": error.hint}
    return {"message": str(error), "hint": error.hint}


def main() -> None:
    """Entry point of the helper process; its one argument is the socket's descriptor."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    try:
        driver = CudaDriver()
    except IjfsError as error:
        channel.sendall(json.dumps([0, None, _describe(error)]).encode() + b"\n")
        return
    serve(driver, channel)


if __name__ == "__main__":
    main()
