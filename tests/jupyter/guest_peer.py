"""A server on loopback that stands where the keeper's guest port is, and answers as a test tells it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any] | bytes | None]


class Peer:
    """Answers each connection with what `answer` returns: an object, raw bytes, or None for silence and a close."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Answer = lambda request: {"ok": {}}
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            with connection, connection.makefile("rb") as lines:
                line = lines.readline()
                if line == b"stop\n":
                    return
                self.requests.append(json.loads(line))
                answer = self.answer(self.requests[-1])
                if isinstance(answer, dict):
                    answer = json.dumps(answer).encode() + b"\n"
                if answer is not None:
                    connection.sendall(answer)

    def close(self) -> None:
        with socket.create_connection(self.socket.getsockname()) as last:
            last.sendall(b"stop\n")
        self.thread.join()
        self.socket.close()


def settles(*answers: dict[str, Any] | bytes | None) -> Answer:
    remaining = list(answers)
    return lambda request: remaining.pop(0) if len(remaining) > 1 else remaining[0]


PENDING = {"ok": {"state": "pending"}}
SAVED = {"ok": {"state": "saved", "snapshot": "ab" * 32, "instance": "demo"}}
RESUMED = {"ok": {"state": "resumed", "snapshot": "ab" * 32, "instance": "demo-1"}}
