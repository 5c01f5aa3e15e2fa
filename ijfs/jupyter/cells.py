"""Run one cell in a live kernel and collect what it printed and returned. Called by `ijfs exec NAME -c CODE`.

A client of its own beside whatever else is connected: neither a notebook that is open on the kernel nor its history
is disturbed. jupyter_client is imported when a cell is run, not before.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ijfs_engine.errors import IjfsError, TargetDiedError

POLL_S = 1.0
"""Between two looks at whether the kernel lives. ipykernel 7 welcomes a subscription within milliseconds; older ones
never do, and are asked something every so often until their own status comes back over iopub."""


class CellTimeoutError(IjfsError):
    """The cell did not finish in the time given; it runs on."""

    default_hint = "`ijfs exec` takes a longer --timeout"


@dataclass(frozen=True)
class CellResult:
    """What a cell did. `stdout` and `stderr` are the streams; `result_text` the value of its last expression as text
    ("" without one); `error` the exception's traceback as text, without colours, "" when `status` is "ok"."""

    status: Literal["ok", "error"]
    stdout: str
    stderr: str
    result_text: str
    error: str


OnStream = Callable[[str, str], None]
"""Called with "stdout" or "stderr" and each piece of text as it comes."""


def run_cell(
    connection_file: str,
    code: str,
    timeout: float | None = None,
    *,
    alive: Callable[[], bool] = lambda: True,
    on_stream: OnStream = lambda name, text: None,
) -> CellResult:
    """Run `code` as a cell of the kernel at `connection_file` and wait until it is done, at most `timeout` seconds.

    Safe right after a restore: nothing is sent before this client's iopub subscription has reached the kernel. `alive`
    is asked every second whether there still is a kernel. Raises `CellTimeoutError` (also while another cell keeps the
    kernel busy) and `TargetDiedError`.
    """
    waiting = _Waiting(None if timeout is None else time.monotonic() + timeout, alive)
    with _Line(connection_file) as line:
        while waiting.receive(line.published) is None:  # any message over iopub shows that we are subscribed
            line.send("kernel_info_request", {})
        return _execute(line, code, waiting, on_stream)


class _Line:
    """Sockets to a kernel's shell and iopub; a context manager.

    Plain sockets of jupyter_client's making, not its blocking client: that one keeps an event loop and threads for
    each calling thread, and its iopub socket connects again only while somebody reads from it.
    """

    def __init__(self, connection_file: str) -> None:
        from jupyter_client.client import KernelClient

        self._client = KernelClient(connection_file=connection_file)
        self._client.load_connection_file()
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
    """How long to go on: until the deadline, and while there is a kernel."""

    deadline: float | None
    alive: Callable[[], bool]

    def receive(self, get: Callable[[float], dict[str, Any] | None]) -> dict[str, Any] | None:
        """One message, or None after a second without one; raises when there is nothing left to wait for."""
        left = POLL_S if self.deadline is None else min(POLL_S, self.deadline - time.monotonic())
        message = get(max(0.001, left))
        if message is None and not self.alive():
            raise TargetDiedError("the kernel has ended", hint="`ijfs logs` shows its last words")
        if message is None and left < POLL_S:
            raise CellTimeoutError("the cell is not done in the time given; it runs on")
        return message


def _execute(line: _Line, code: str, waiting: _Waiting, on_stream: OnStream) -> CellResult:
    # Not stop_on_error: a cell that raises would take down what a notebook has queued behind it, and, for a moment
    # after its answer, whatever cell comes next.
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    collected = _Outputs(line.send("execute_request", {**content, "stop_on_error": False}), on_stream)
    while not collected.complete:
        message = waiting.receive(line.replied if collected.idle else line.published)
        if message is not None:
            collected.add(message)
    return collected.result()


class _Outputs:
    """What came back for one request: outputs over iopub until its idle status, then the reply over shell."""

    def __init__(self, request: str, on_stream: OnStream) -> None:
        self._request = request
        self._on_stream = on_stream
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
                self._stream(content["name"], content["text"])
            case "execute_result":
                self._result = content["data"].get("text/plain", "")
            case "display_data":
                self._stream("stdout", content["data"].get("text/plain", "") + "\n")
            case "status":
                self.idle = content["execution_state"] == "idle"
            case "execute_reply":
                self._reply = content

    def _stream(self, name: str, text: str) -> None:
        self._streams[name] += text
        self._on_stream(name, text)

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
