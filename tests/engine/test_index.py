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
from ijfs_engine.storage.index import META, U64, Index, _Gate
from ijfs_engine.storage.index_file import doubt, newest_meta

MOST_S = patient(20)

# Holds on until it is told to let go. Whoever would have to wait for it before he can say so, waits `MOST_S`.
HOLDER = """
import select, sys
from pathlib import Path
from ijfs_engine.storage.index import Index

told = []

def hold(update):
    print("held", flush=True)
    told.extend(select.select([sys.stdin], [], [], float(sys.argv[2]))[0])

index = Index.open(Path(sys.argv[1]))
index.write(hold)
index.close()
sys.exit(0 if told else "nobody said anything")
"""


@contextmanager
def write_lock_held_elsewhere(path: Path) -> Iterator[Callable[[], None]]:
    """Another process is in a write transaction until it is told to let go; after `MOST_S` nobody could."""
    command = [sys.executable, "-c", HOLDER, str(path), str(MOST_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield holder.stdin.close
        assert holder.wait(MOST_S) == 0


@pytest.mark.parametrize("way", ["open", "write"])
def test_waiting_for_another_process_stops_no_other_thread(tmp_path: Path, way: str) -> None:
    """A keeper's event loop once stood still as long as another process's transaction took."""
    Index.open(tmp_path / "index").close()
    index = Index.open(tmp_path / "index") if way == "write" else None
    with write_lock_held_elsewhere(tmp_path / "index") as let_go:

        def work() -> None:
            mine = index or Index.open(tmp_path / "index")
            mine.write(lambda update: update.put(META, b"mine", U64.pack(1)))
            mine.close()

        worker = threading.Thread(target=work)
        worker.start()
        for _ in range(50):  # all this while the other thread is on its way to the lock, and waits for it
            time.sleep(0.01)
        assert worker.is_alive()
        let_go()
        worker.join()


@pytest.mark.parametrize(("inside", "outside"), [("alone", "alone"), ("alone", "shared"), ("shared", "alone")])
def test_nobody_is_inside_beside_one_who_is_alone(inside: str, outside: str) -> None:
    """LMDB moves its map then."""
    gate, entered = _Gate(), threading.Event()

    def enter() -> None:
        with getattr(gate, outside)():
            entered.set()

    other = threading.Thread(target=enter)
    with getattr(gate, inside)():
        other.start()
        assert not entered.wait(0.1)
    other.join()
    assert entered.is_set()


def test_an_index_is_opened_while_its_last_user_lets_go_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread of the process, which had been told that the index may be damaged."""
    index, opened = Index.open(tmp_path / "index"), []
    gate = index._environment._gate
    alone = gate.alone
    other = threading.Thread(target=lambda: opened.append(Index.open(tmp_path / "index")))

    @contextmanager
    def later() -> Iterator[None]:
        other.start()
        other.join(0.2)  # it waits for what is to follow, or has failed by then
        with alone():
            yield

    monkeypatch.setattr(gate, "alone", later)
    index.close()
    other.join(patient(20))
    assert len(opened) == 1
    opened[0].close()


def test_readers_do_not_wait_for_a_write_transaction(repository: Repository) -> None:
    with write_lock_held_elsewhere(repository.directory.index) as let_go:
        assert repository.snapshots() == []
        assert repository.stats().chunks == 0
        let_go()


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
