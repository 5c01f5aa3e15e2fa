"""A load client: several connections that ask without a pause, each answer compared with its question."""

from __future__ import annotations

import http.client
import threading
import time
from typing import Any

from waiting import patient

ANSWER_S = patient(60.0)


class Load:
    """A context manager: asks `http://127.0.0.1:PORT/<word>` from `connections` threads, every other one over a
    connection that it keeps. `wrong` has what was no right answer, `answers` counts those that were."""

    def __init__(self, port: int, *, connections: int = 4, pause_s: float = 0.002) -> None:
        self.wrong: list[str] = []
        self.answers = 0
        self.longest_s = 0.0
        self._port, self._pause_s = port, pause_s
        self._ends = threading.Event()
        self._guard = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, args=(n,), daemon=True) for n in range(connections)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(ANSWER_S)
        assert not any(thread.is_alive() for thread in self._threads), "a request was never answered"

    def _ask_on(self, number: int) -> None:
        kept = number % 2 == 1
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        count = 0
        while not self._ends.is_set():
            count += 1
            word = f"{number}-{count}"
            began = time.monotonic()
            try:
                connection.request("POST" if count % 3 == 0 else "GET", f"/{word}", body=b"x" * (count % 3 == 0) * 5000)
                answer = connection.getresponse()
                said = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                said = repr(error)
                connection.close()
            with self._guard:
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                if said == word:
                    self.answers += 1
                else:
                    self.wrong.append(f"{word}: {said}")
            if not kept:
                connection.close()
            self._ends.wait(self._pause_s)
        connection.close()


SERVER = """
import http.server, json, os, sys
asked = 0
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words): pass
    def do_GET(self):
        global asked
        asked += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        word = self.path[1:]
        body = json.dumps({"asked": asked, "pid": os.getpid()}).encode() if word == "state" else word.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A server that answers with the path, and at /state with how often it was asked: memory that has to come back."""
