"""A store that is far away: a TCP proxy whose answers come later and no faster than a link would bring them.

python -m bench.delay_proxy --to 127.0.0.1:8080 --delay-ms 20 --mbit 1000

Prints the port it listens on. What the client sends waits half of the delay, what comes back the other half and then
for its turn on the link, which all connections share. The kernel's netem would do the same where it is built in.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import socket
import threading
import time

_PIECE = 64 << 10


class Link:
    """Bytes of all connections, one after the other."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def turn(self, size: int) -> float:
        """When a piece that came now is through."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self._rate
            return self._free_at


class Pipe:
    """One direction of a connection: a thread reads, another one sends what is old enough."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float, link: Link | None) -> None:
        self._source, self._target, self._delay_s, self._link = source, target, delay_s, link
        self._pieces: collections.deque[tuple[float, bytes]] = collections.deque()
        self._more = threading.Semaphore(0)
        for call in (self._read, self._send):
            threading.Thread(target=call, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(_PIECE)
            except OSError:
                data = b""
            due = self._link.turn(len(data)) if self._link is not None else time.monotonic()
            self._pieces.append((due + self._delay_s, data))
            self._more.release()

    def _send(self) -> None:
        while True:
            self._more.acquire()
            due, data = self._pieces.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            with contextlib.suppress(OSError):
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                    return
                self._target.sendall(data)


def serve(listener: socket.socket, to: tuple[str, int], delay_s: float, bytes_per_s: float) -> None:
    """For ever."""
    up, down = Link(bytes_per_s), Link(bytes_per_s)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(to)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Pipe(client, server, delay_s / 2, up)
        Pipe(server, client, delay_s / 2, down)


def main() -> None:
    """Until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--mbit", type=float, default=1000)
    arguments = parser.parse_args()
    host, port = arguments.to.rsplit(":", 1)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    serve(listener, (host, int(port)), arguments.delay_ms / 1000, arguments.mbit * 125_000)


if __name__ == "__main__":
    main()
