"""The keeper's protocol: one JSON object a line. Both ends use this module (client/api.py, keeper/process.py).

A request is `{"id": 1, "verb": "save", "args": {…}}`. Its answers carry the same id: any number of
`{"id": 1, "event": {"kind": …, …}}`, then one `{"id": 1, "ok": {…}}` or `{"id": 1, "error": {…}}` (errors.describe).
Bytes (a notebook document) travel as base64 in JSON, as msgspec does it.

| verb | args | ok |
|---|---|---|
| start | spec, again | InstanceInfo |
| restore | snapshot, eager, gpus, again, siblings | InstanceInfo |
| adopt | – | InstanceInfo |
| status | – | InstanceInfo |
| save | message, branch, stop, notebook, force, gpu_timeout_s, wait | SaveResult; without `wait` at the thaw |
| wait_save | number | SaveResult of a save that was not waited for, when it is durable |
| wait_memory | – | InstanceInfo, when all memory of a lazy restore is in |
| signal | number | {} |
| stop | timeout_s, force | InstanceInfo, when all saves are durable |

`start`, `restore` (of a new instance) and `adopt` are what a keeper is spawned with: they come over the socket that
the client handed it, the others over the control socket. Events: `{"kind": "phase", "name": …}` when a phase begins,
`{"kind": "progress", "name", "done", "total"}` in bytes, `{"kind": "notice", "text": …}` what a person should know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ijfs.live.errors import ProtocolError

# A notebook document is the largest thing that crosses; 64 MiB of base64 is more than Jupyter itself bears.
MAX_LINE = 64 << 20

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Any])


def encode(message: dict[str, Any]) -> bytes:
    """One line, newline included."""
    return _encoder.encode(message) + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object of one line; ProtocolError for anything else."""
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a line on the control socket is not a JSON object: {error}") from error


class LineBuffer:
    """Bytes as they come in, lines as they are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was received; return the complete lines (without newlines)."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        if len(rest) > MAX_LINE:
            raise ProtocolError(f"a line on the control socket is longer than {MAX_LINE} bytes")
        return [bytes(line) for line in lines]
