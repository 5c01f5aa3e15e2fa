"""A kernel's outputs as E2B's code interpreter client reads them: a JSON object a line."""

from __future__ import annotations

import time
from typing import Any

from ijfs.jupyter.outputs import Output

NAMES = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
}
"""What the client calls the MIME types that it knows. All others are in `extra`."""


def event(output: Output) -> dict[str, Any]:
    """One output of a cell."""
    match output["output_type"]:
        case "stream":
            return {"type": output["name"], "text": output["text"], "timestamp": time.time_ns()}
        case "error":
            trace = "\n".join(output["traceback"])
            return {"type": "error", "name": output["ename"], "value": output["evalue"], "traceback": trace}
        case _:
            return _result(output["data"], is_main=output["output_type"] == "execute_result")


def error(name: str, value: str) -> dict[str, Any]:
    """An error that is the server's and not the cell's."""
    return {"type": "error", "name": name, "value": value, "traceback": value}


def _result(data: dict[str, Any], *, is_main: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "result", "is_main_result": is_main}
    extra = {}
    for kind, value in data.items():
        if kind in NAMES:
            found[NAMES[kind]] = _text(value) if kind == "text/plain" else value
        else:
            extra[kind] = value
    return found | ({"extra": extra} if extra else {})


def _text(value: str) -> str:
    """Of a string, what is between its quotes: so E2B has it."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value
