"""Run one cell in a live kernel and collect what it printed and returned. Called by ijfs.sdk.box.

A client of its own beside whatever else is connected: neither a notebook that is open on the kernel nor its history
is disturbed. jupyter_client is imported when a cell is run, not before. What comes back is put together in outputs.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ijfs.jupyter.outputs import CellResult, OnOutput, OnStream, Outputs
from ijfs_engine.errors import IjfsError, TargetDiedError

POLL_S = 1.0
"""Between two looks at whether the kernel lives. ipykernel 7 welcomes a subscription within milliseconds; older ones
never do, and are asked something every so often until their own status comes back over iopub."""

CANCEL_POLL_S = 0.1
"""Between two looks at whether the caller still wants the cell, where it may change its mind."""

QUIET_S = 5.0
"""How long the end of a cell that has replied is waited for, while nothing is published. It comes within
milliseconds."""

BEGIN_S = 2.0
"""How long a cell that is not wanted any more gets to begin, so that it can be interrupted: one in an idle kernel
begins within milliseconds, and one behind another's does not."""

INTERRUPT_S = 10.0
"""How long a cell gets to end after it was interrupted: a library in the middle of a long call into C takes a while."""


class CellTimeoutError(IjfsError):
    """The cell did not finish in the time given. `result` is what it had done by then, where it has ended since."""

    default_hint = "`ijfs exec` takes a longer --timeout"
    result: CellResult | None = None


def run_cell(
    connection_file: str,
    code: str,
    timeout: float | None = None,
    *,
    alive: Callable[[], bool] = lambda: True,
    on_stream: OnStream = lambda name, text: None,
    on_output: OnOutput | None = None,
    interrupt: Callable[[], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    store_history: bool = False,
) -> CellResult:
    """Run `code` as a cell of the kernel at `connection_file` and wait until it is done, at most `timeout` seconds.

    Safe right after a restore: nothing is sent before this client's iopub subscription has reached the kernel. `alive`
    is asked every second whether there still is a kernel. Raises `CellTimeoutError` (also while another cell keeps the
    kernel busy) and `TargetDiedError`. When the time is over, or `cancelled` says so, a cell that has begun is
    interrupted by `interrupt`, where that is given, and its end waited for: the kernel keeps its state.
    `store_history`: it counts, and is found again in the kernel's `In` and `Out`.
    """
    waiting = _Waiting(_deadline(timeout), alive, cancelled)
    with _Line(connection_file) as line:
        while waiting.receive(line.published) is None:  # any message over iopub shows that we are subscribed
            line.send("kernel_info_request", {})
        # Not stop_on_error: a cell that raises would take down what a notebook has queued behind it, and, for a moment
        # after its answer, whatever cell comes next.
        content = {"code": code, "silent": False, "user_expressions": {}, "allow_stdin": False, "stop_on_error": False}
        request = line.send("execute_request", {**content, "store_history": store_history})
        outputs = Outputs(request, on_stream, on_output)
        try:
            return _collected(line, outputs, waiting)
        except CellTimeoutError:
            if interrupt is None or not (outputs.begun or _begins(line, outputs, alive)):
                raise
            interrupt()
            return _interrupted(line, outputs, alive)


class _Line:
    """Sockets to a kernel's shell and iopub; a context manager.

    Plain sockets of jupyter_client's making, not its blocking client: that one keeps an event loop and threads for
    each calling thread, and its iopub socket connects again only while somebody reads from it.
    """

    def __init__(self, connection_file: str) -> None:
        import zmq
        from jupyter_client.client import KernelClient

        self._client = KernelClient(connection_file=connection_file)
        self._client.load_connection_file()
        self._client.context.setsockopt(zmq.RCVHWM, 0)  # for the sockets to come: nothing is dropped at this end
        self._shell = self._client.connect_shell(identity=self._client.session.bsession)
        self._iopub = self._client.connect_iopub()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.close(linger=0)
        self._iopub.close(linger=0)
        self._client.context.term()

    def send(self, kind: str, content: dict[str, Any]) -> str:
        """Send a request over shell; its message id."""
        sent = self._client.session.send(self._shell, kind, content)
        return str(sent["header"]["msg_id"])

    def published(self, wait_s: float) -> dict[str, Any] | None:
        """The next message over iopub; None when none comes in time."""
        return self._receive(self._iopub, wait_s)

    def replied(self, wait_s: float) -> dict[str, Any] | None:
        """The next reply over shell; None when none comes in time."""
        return self._receive(self._shell, wait_s)

    def _receive(self, socket: Any, wait_s: float) -> dict[str, Any] | None:
        if not socket.poll(round(wait_s * 1000)):
            return None
        received: tuple[list[bytes], dict[str, Any]] = self._client.session.recv(socket, mode=0)
        return received[1]


@dataclass(frozen=True)
class _Waiting:
    """How long to go on: until the deadline, while the caller wants it, and while there is a kernel."""

    deadline: float | None
    alive: Callable[[], bool]
    cancelled: Callable[[], bool] | None = None

    def receive(self, get: Callable[[float], dict[str, Any] | None]) -> dict[str, Any] | None:
        """One message, or None after a while without one; raises when there is nothing left to wait for."""
        pause = POLL_S if self.cancelled is None else CANCEL_POLL_S
        left = pause if self.deadline is None else min(pause, self.deadline - time.monotonic())
        if left <= 0:  # before the next message: a cell may print without end
            raise CellTimeoutError("the cell is not done in the time given; it runs on")
        if self.cancelled is not None and self.cancelled():
            raise CellTimeoutError("the cell is not wanted any more; it runs on")
        message = get(left)
        if message is None and not self.alive():
            raise TargetDiedError("the kernel has ended", hint="`ijfs logs` shows its last words")
        return message


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _collected(line: _Line, outputs: Outputs, waiting: _Waiting) -> CellResult:
    """All that comes back. What is published may be lost, when it comes faster than it is read (ZeroMQ then drops it):
    where the reply has come and nothing more is published, there is nothing to wait for."""
    quiet_since: float | None = None
    while not outputs.complete:
        message = waiting.receive(line.replied if outputs.idle else line.published)
        if message is None and not outputs.idle:
            message = line.replied(0)
        if message is not None:
            outputs.add(message)
            quiet_since = None
        elif outputs.replied:
            quiet_since = quiet_since or time.monotonic()
            if time.monotonic() - quiet_since > QUIET_S:
                break
    return outputs.result()


def _begins(line: _Line, outputs: Outputs, alive: Callable[[], bool]) -> bool:
    """Whether a cell that was only just sent begins: nobody would interrupt it later."""
    waiting = _Waiting(_deadline(BEGIN_S), alive)
    while not outputs.begun:
        try:
            message = waiting.receive(line.published)
        except CellTimeoutError:
            return False
        if message is not None:
            outputs.add(message)
    return True


def _interrupted(line: _Line, outputs: Outputs, alive: Callable[[], bool]) -> CellResult:
    """The result of a cell that was done in spite of all just then; else CellTimeoutError, once it has ended."""
    try:
        result = _collected(line, outputs, _Waiting(_deadline(INTERRUPT_S), alive))
    except CellTimeoutError:
        raise CellTimeoutError("the cell is not done in the time given, and goes on in spite of an interrupt") from None
    if result.ok:
        return result
    error = CellTimeoutError(
        "the cell was not done in the time given and was interrupted; the kernel and its state are as they were",
        hint="give it more time, or less to do",
    )
    error.result = result
    raise error
