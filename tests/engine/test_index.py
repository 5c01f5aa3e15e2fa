"""The index beside other processes: whoever waits for their write transactions lets the interpreter's lock go."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import lmdb
import pytest
from waiting import patient

from ijfs_engine import Repository
from ijfs_engine.storage.index import META, U64, Index
from ijfs_engine.storage.index_file import doubt, newest_meta

HELD_S = patient(1.5)

HOLDER = """
import sys, time
from pathlib import Path
from ijfs_engine.storage.index import Index

def hold(update):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))

index = Index.open(Path(sys.argv[1]))
index.write(hold)
index.close()
"""


@contextmanager
def write_lock_held_elsewhere(path: Path) -> Iterator[None]:
    """Another process is in a write transaction for `HELD_S` from here."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path), str(HELD_S)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        assert holder.wait(30) == 0


def longest_pause(work: Callable[[], object]) -> tuple[float, float]:
    """(the longest that this thread stood still while another did `work`, how long that took)."""
    began = last = time.monotonic()
    pause = 0.0
    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        now = time.monotonic()
        pause, last = max(pause, now - last), now
        time.sleep(0.005)
    end = time.monotonic()
    return max(pause, end - last), end - began


@pytest.mark.parametrize("way", ["open", "write"])
def test_waiting_for_another_process_stops_no_other_thread(tmp_path: Path, way: str) -> None:
    """A keeper's event loop once stood still as long as another process's transaction took."""
    Index.open(tmp_path / "index").close()
    index = Index.open(tmp_path / "index") if way == "write" else None
    with write_lock_held_elsewhere(tmp_path / "index"):

        def work() -> None:
            mine = index or Index.open(tmp_path / "index")
            mine.write(lambda update: update.put(META, b"mine", U64.pack(1)))
            mine.close()

        pause, took = longest_pause(work)
    assert took > HELD_S / 2
    assert pause < HELD_S / 3


def test_readers_do_not_wait_for_a_write_transaction(repository: Repository) -> None:
    with write_lock_held_elsewhere(repository.directory.index):
        began = time.monotonic()
        assert repository.snapshots() == []
        assert repository.stats().chunks == 0
        assert time.monotonic() - began < HELD_S / 3


def test_the_meta_pages_say_what_lmdb_says(tmp_path: Path) -> None:
    """index_file.py reads them by hand: a new LMDB with another layout has to show here."""
    with closing(lmdb.open(str(tmp_path / "index"), map_size=64 << 20)) as env:
        for number in range(5):
            with env.begin(write=True) as txn:
                for key in range(500):
                    txn.put(b"%d" % (1000 * number + key), bytes(100))
            head = (tmp_path / "index" / "data.mdb").read_bytes()
            info = env.info()
            meta = newest_meta(head)
            assert meta is not None
            assert meta[:3] == (env.stat()["psize"], info["last_pgno"], info["last_txnid"])
            stat = env.stat()
            assert meta.main[:5] == tuple(
                stat[name] for name in ("depth", "branch_pages", "leaf_pages", "overflow_pages", "entries")
            )
            assert doubt(head) is None


def test_meta_pages_of_another_format_are_not_read(tmp_path: Path) -> None:
    with closing(lmdb.open(str(tmp_path / "index"), map_size=1 << 20)) as env, env.begin(write=True) as txn:
        txn.put(b"key", b"value")
    head = bytearray((tmp_path / "index" / "data.mdb").read_bytes())
    assert newest_meta(bytes(head)) is not None
    head[20] += 1
    assert newest_meta(bytes(head)) is None
