"""What a cell's outputs come to, as a notebook would keep them: called by cells.py with each message of the kernel.

An output is a dictionary of nbformat 4's (`output_type` and what goes with it), so that a caller may put it into a
notebook as it is: pieces of one stream are one output, an update replaces the display that it is of.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

Output = dict[str, Any]
"""One output of a cell, as nbformat 4 has it: `stream`, `display_data`, `execute_result` or `error`."""

OnStream = Callable[[str, str], None]
"""Called with "stdout" or "stderr" and each piece of text as it comes."""

OnOutput = Callable[[Output], None]
"""Called with each output as it comes; a stream's in pieces."""


@dataclass(frozen=True)
class CellResult:
    """What a cell did. `stdout` and `stderr` are the streams (what it displayed counts as `stdout`, as text);
    `result_text` the value of its last expression as text ("" without one); `error` the exception's traceback as text,
    without colours, "" when `status` is "ok"; `error_name` the exception's class. `outputs`: all of it, with every MIME
    type that the kernel sent. `execution_count`: the kernel's number of it; None where it gave none."""

    status: Literal["ok", "error"]
    stdout: str
    stderr: str
    result_text: str
    error: str
    error_name: str = ""
    outputs: tuple[Output, ...] = ()
    execution_count: int | None = None

    @property
    def text(self) -> str:
        """What it printed and the value of its last expression, as a terminal would show them."""
        return self.stdout + self.result_text

    @property
    def ok(self) -> bool:
        """Whether it raised nothing."""
        return self.status == "ok"

    def images(self) -> list[tuple[str, bytes]]:
        """The pictures it displayed: (MIME type, bytes) of each, PNG before JPEG where there are both."""
        found = []
        for data in (output.get("data", {}) for output in self.outputs):
            for kind in ("image/png", "image/jpeg"):
                if kind in data:
                    found.append((kind, base64.b64decode(data[kind])))
                    break
        return found


class Outputs:
    """What came back for one request: outputs over iopub until its idle status, then the reply over shell."""

    def __init__(self, request: str, on_stream: OnStream, on_output: OnOutput | None = None) -> None:
        self._request = request
        self._on_stream = on_stream
        self._on_output = on_output
        self._streams: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._result = ""
        self._outputs: list[Output] = []
        self._displays: dict[str, Output] = {}
        self._clear = False
        self._reply: dict[str, Any] | None = None
        self.begun = False
        self.idle = False

    @property
    def replied(self) -> bool:
        """Whether the reply has come."""
        return self._reply is not None

    @property
    def complete(self) -> bool:
        """Whether all has come."""
        return self.idle and self.replied

    def add(self, message: dict[str, Any]) -> None:
        """Take one message in; those of other clients' requests are passed over."""
        if message["parent_header"].get("msg_id") != self._request:
            return
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                self._stream(content["name"], content["text"])
                self._put({"output_type": "stream", "name": content["name"], "text": content["text"]})
            case "execute_result":
                self._result = content["data"].get("text/plain", "")
                self._put({**_displayed(content, "execute_result"), "execution_count": content.get("execution_count")})
            case "display_data":
                self._stream("stdout", content["data"].get("text/plain", "") + "\n")
                self._put(_displayed(content, "display_data"), content.get("transient", {}).get("display_id"))
            case "update_display_data":
                self._update(content)
            case "clear_output":
                self._clear = True
                if not content.get("wait"):
                    self._clear_now()
            case "error":
                self._put({"output_type": "error", **{key: content[key] for key in ("ename", "evalue", "traceback")}})
            case "status":
                self.begun = True
                self.idle = content["execution_state"] == "idle"
            case "execute_reply":
                self._reply = content

    def _stream(self, name: str, text: str) -> None:
        self._streams[name].append(text)
        self._on_stream(name, text)

    def _put(self, output: Output, display: str | None = None) -> None:
        self._clear_now()
        if self._on_output is not None:
            self._on_output(dict(output))
        self._outputs.append(output)
        if display:
            self._displays[display] = output

    def _clear_now(self) -> None:
        if self._clear:
            self._clear = False
            self._outputs.clear()

    def _update(self, content: dict[str, Any]) -> None:
        """A display that this cell made shows something else now."""
        shown = self._displays.get(content.get("transient", {}).get("display_id"))
        if shown is not None:
            shown.update(data=content["data"], metadata=content.get("metadata", {}))
            if self._on_output is not None:
                self._on_output(dict(shown))

    def result(self) -> CellResult:
        """The outcome; an aborted cell (one before it failed) counts as an error, and so does one without a reply."""
        reply = self._reply or {"status": "aborted"}
        ok = reply["status"] == "ok"
        error = "" if ok else _plain("\n".join(reply.get("traceback", []))) or "the cell was aborted"
        return CellResult(
            status="ok" if ok else "error",
            stdout="".join(self._streams["stdout"]),
            stderr="".join(self._streams["stderr"]),
            result_text=self._result,
            error=error,
            error_name="" if ok else reply.get("ename", ""),
            outputs=tuple(_joined(self._outputs)),
            execution_count=reply.get("execution_count"),
        )


def _joined(outputs: list[Output]) -> Iterator[Output]:
    """The same with pieces of one stream that follow one another as one output."""
    for name, pieces in groupby(outputs, key=lambda output: output.get("name")):
        if name is None:
            yield from pieces
        else:
            yield {"output_type": "stream", "name": name, "text": "".join(piece["text"] for piece in pieces)}


def _displayed(content: dict[str, Any], kind: str) -> Output:
    return {"output_type": kind, "data": content["data"], "metadata": content.get("metadata", {})}


def _plain(text: str) -> str:
    """Without the terminal colours that IPython puts into a traceback."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
