"""A program in a sandbox that answers one line per connection on port 9000; what every program here is built on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

PORT = 9000


def answer_forever(**handlers: Callable[..., Any]) -> None:
    """Serve `verb argument…` lines: the handler's answer, or `error: …`, as text; one connection each."""
    with socket.create_server(("127.0.0.1", PORT)) as server:
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("r") as lines:
                verb, *arguments = lines.readline().split()
                try:
                    answer = str(handlers[verb](*arguments))
                except Exception as error:
                    answer = f"error: {type(error).__name__}: {error}"
                connection.sendall(answer.encode())
