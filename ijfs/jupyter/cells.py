"""Run one cell in a live kernel and collect what it printed and returned. Called by `ijfs exec NAME -c CODE`.

A client of its own beside whatever else is connected: neither a notebook that is open on the kernel nor its history
is disturbed. jupyter_client is imported when a cell is run, not before.
"""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ijfs_engine.errors import IjfsError, TargetDiedError

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

POLL_S = 1.0
"""Between two looks at whether the kernel lives. ipykernel 7 welcomes a subscription within milliseconds; older ones
never do, and are asked something every so often until their own status comes back over iopub."""


class CellTimeoutError(IjfsError):
    """The cell did not finish in the time given; it runs on."""

    default_hint = "`ijfs exec` takes a longer --timeout; `ijfs signal NAME INT` interrupts the cell"


@dataclass(frozen=True)
class CellResult:
    """What a cell did. `stdout` and `stderr` are the streams; `result_text` the value of its last expression as text
    ("" without one); `error` the exception's traceback as text, without colours, "" when `status` is "ok"."""

    status: Literal["ok", "error"]
    stdout: str
    stderr: str
    result_text: str
    error: str


def run_cell(
    connection_file: str, code: str, timeout: float | None = None, *, alive: Callable[[], bool] = lambda: True
) -> CellResult:
    """Run `code` as a cell of the kernel at `connection_file` and wait until it is done, at most `timeout` seconds.

    Safe right after a restore: nothing is sent before this client's iopub subscription has reached the kernel. `alive`
    is asked every second whether there still is a kernel. Raises `CellTimeoutError` (also while another cell keeps the
    kernel busy) and `TargetDiedError`.
    """
    from jupyter_client.blocking.client import BlockingKernelClient

    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels(stdin=False, hb=False)
    waiting = _Waiting(None if timeout is None else time.monotonic() + timeout, alive)
    try:
        _subscribe(client, waiting)
        return _execute(client, code, waiting)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


@dataclass(frozen=True)
class _Waiting:
    """How long to go on: until the deadline, and while there is a kernel."""

    deadline: float | None
    alive: Callable[[], bool]

    def receive(self, get: Callable[..., dict[str, Any]]) -> dict[str, Any] | None:
        """One message, or None after a second without one; raises when there is nothing left to wait for."""
        left = POLL_S if self.deadline is None else min(POLL_S, self.deadline - time.monotonic())
        try:
            return get(timeout=max(0.001, left))
        except queue.Empty:
            if not self.alive():
                raise TargetDiedError("the kernel has ended", hint="`ijfs logs` shows its last words") from None
            if left < POLL_S:
                raise CellTimeoutError("the cell is not done in the time given; it runs on") from None
            return None


def _subscribe(client: BlockingKernelClient, waiting: _Waiting) -> None:
    """Return when the kernel is known to publish to us: any message over iopub shows it."""
    while waiting.receive(client.get_iopub_msg) is None:
        client.kernel_info()


def _execute(client: BlockingKernelClient, code: str, waiting: _Waiting) -> CellResult:
    collected = _Outputs(client.execute(code, store_history=False, allow_stdin=False))
    while not collected.complete:
        message = waiting.receive(client.get_shell_msg if collected.idle else client.get_iopub_msg)
        if message is not None:
            collected.add(message)
    return collected.result()


class _Outputs:
    """What came back for one request: outputs over iopub until its idle status, then the reply over shell."""

    def __init__(self, request: str) -> None:
        self._request = request
        self._streams = {"stdout": "", "stderr": ""}
        self._result = ""
        self._reply: dict[str, Any] | None = None
        self.idle = False

    @property
    def complete(self) -> bool:
        return self.idle and self._reply is not None

    def add(self, message: dict[str, Any]) -> None:
        """Take one message in; those of other clients' requests are passed over."""
        if message["parent_header"].get("msg_id") != self._request:
            return
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                self._streams[content["name"]] += content["text"]
            case "execute_result":
                self._result = content["data"].get("text/plain", "")
            case "display_data":
                self._streams["stdout"] += content["data"].get("text/plain", "") + "\n"
            case "status":
                self.idle = content["execution_state"] == "idle"
            case "execute_reply":
                self._reply = content

    def result(self) -> CellResult:
        """The outcome; an aborted cell (one before it failed) counts as an error."""
        assert self._reply is not None
        ok = self._reply["status"] == "ok"
        error = "" if ok else _plain("\n".join(self._reply.get("traceback", []))) or "the cell was aborted"
        return CellResult(
            "ok" if ok else "error", self._streams["stdout"], self._streams["stderr"], self._result, error
        )


def _plain(text: str) -> str:
    """Without the terminal colours that IPython puts into a traceback."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
