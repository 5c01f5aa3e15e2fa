"""Ranges from a store that fails, stalls or is gone: the right bytes, or an error in bounded time. Over real HTTP."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from obstore.store import HTTPStore
from waiting import eventually, patient

from ijfs_engine import RemoteError
from ijfs_engine.remote.bucket import Bucket
from ijfs_engine.remote.ranges import RangeReader

DATA = random.Random(3).randbytes(300_000)


class Store:
    """An HTTP server of one object; `before` is called before each answer, and may say another status."""

    def __init__(self) -> None:
        self.before: Callable[[int], int | None] = lambda number: None
        self.asked = 0
        self._lock = threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with store._lock:
                    store.asked += 1
                    number = store.asked
                status = store.before(number)
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
                assert found is not None
                start, end = int(found[1]), int(found[2]) + 1
                data = DATA[start:end] if status is None else b""
                self.send_response(206 if status is None else status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(DATA)}")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *parts: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture
def readers() -> Iterator[Callable[..., RangeReader]]:
    made: list[RangeReader] = []

    def make(url: str, silence_s: float = 30.0) -> RangeReader:
        client = HTTPStore.from_url(url, client_options={"allow_http": True}, retry_config={"max_retries": 0})
        made.append(RangeReader(Bucket(client, url), silence_s=silence_s))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def test_what_fails_for_a_while_is_asked_again(store: Store, readers: Callable[..., RangeReader]) -> None:
    store.before = lambda number: 503 if number < 3 else None
    assert readers(store.url).read("pack", 1000, 5000) == DATA[1000:5000]
    assert store.asked == 3


def test_what_stalls_is_asked_a_second_time(store: Store, readers: Callable[..., RangeReader]) -> None:
    answered = threading.Event()

    def before(number: int) -> None:
        if number == 1:
            answered.wait(patient(30))

    store.before = before
    reader = readers(store.url)
    try:
        assert reader.read("pack", 0, 5000) == DATA[:5000]
        assert reader.hedged == 1
    finally:
        answered.set()


def test_a_store_that_is_gone_is_not_waited_for_twice(store: Store, readers: Callable[..., RangeReader]) -> None:
    store.before = lambda number: 500
    reader = readers(store.url, silence_s=patient(60))
    with pytest.raises(RemoteError, match="500"):
        reader.read("pack", 0, 5000)
    silent = threading.Event()

    def stall(number: int) -> None:
        silent.wait(patient(120))

    store.before = stall
    began = time.monotonic()
    try:
        for _ in range(100):
            with pytest.raises(RemoteError, match="does not answer"):
                reader.read("pack", 0, 5000)
        assert time.monotonic() - began < patient(30)
    finally:
        silent.set()
    store.before = lambda number: None
    assert eventually(lambda: answers(reader))


def answers(reader: RangeReader) -> bool:
    try:
        return reader.read("pack", 0, 5000) == DATA[:5000]
    except RemoteError:
        return False
