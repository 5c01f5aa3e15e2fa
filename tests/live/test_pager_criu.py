"""Programs that CRIU dumped come back through the pager: every page is compared after `criu restore --lazy-pages`."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pager_restored import content
from waiting import eventually

from ijfs.live.pager.api import Pager
from ijfs.live.pager.messages import Source
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

HERE = Path(__file__).parent
CRIU = Path(__file__).parents[2] / ".prefix" / "bin" / "criu"


class Namespace:
    """A pid namespace with one program of `pager_restored.py` in it, dumped and gone; `restore` brings it back."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.images = where / "images"
        self.workdir = where / "work"
        self.images.mkdir()
        self.workdir.mkdir()
        self.process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, HERE / "pager_init.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, *argv: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(repr([str(word) for word in argv]) + "\n")
        self.process.stdin.flush()
        return ast.literal_eval(self.process.stdout.readline())

    def dump(self, mebibytes: int, children: int = 0, zeros: int = 0) -> None:
        sizes = [str(mebibytes), str(children), str(zeros)]
        self.pid = self.call("&", sys.executable, str(HERE / "pager_restored.py"), str(self.where), *sizes)
        for index in range(children + 1):
            assert eventually((self.where / f"{index}.ready").exists, 60)
        status, output = self.call(str(CRIU), "dump", "-t", str(self.pid), "-D", str(self.images), "-o", "dump.log")
        assert status == 0, output

    def restore(self) -> None:
        log = str(self.workdir / "restore.log")
        status, output = self.call(
            str(CRIU), "restore", "-d", "--lazy-pages", "-D", str(self.images), "-W", str(self.workdir), "-o", log
        )
        assert status == 0, output + Path(log).read_text()[-2000:]

    def ask(self, question: str, index: int = 0) -> Any:
        self.send(question, index)
        return self.answer(index)

    def send(self, question: str, index: int = 0) -> None:
        partial = self.where / f"{index}.question"
        partial.write_text(question)
        partial.rename(self.where / f"{index}.ask")

    def answer(self, index: int = 0) -> Any:
        path = self.where / f"{index}.answer"
        assert eventually(path.exists, 60)
        value = ast.literal_eval(path.read_text())
        path.unlink()
        return value

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0 or not CRIU.exists():
        pytest.skip("needs root and the CRIU of tools/setup")
    where = Path(f"/dev/shm/ijfs-pager-test-{os.getpid()}")
    where.mkdir()
    built = Namespace(where)
    yield built
    built.close()
    shutil.rmtree(where)


def kept(namespace: Namespace) -> tuple[Path, str]:
    """The images in a repository of their own: (its path, the snapshot's id)."""
    path = namespace.where / "repo"
    with Repository.init(path) as repository, repository.begin() as writer:
        writer.add_images("images", {file.name: file for file in namespace.images.glob("*.img")})
        return path, writer.commit(message="dumped").id.hex()


def paged(namespace: Namespace, delay_s: float = 0.0, **options: Any) -> Pager:
    return Pager(namespace.workdir, Source(images=str(namespace.images), delay_s=delay_s, **options))


def test_a_restored_program_finds_all_its_memory(namespace: Namespace) -> None:
    namespace.dump(200)
    with paged(namespace) as pager:
        namespace.restore()
        assert pager.wait_resumed(10).resumed
        assert namespace.ask("world.bad()") == []
        status = pager.wait(30)
        assert status.pages_in == status.pages > 200 * 256
        assert namespace.ask("world.bad()") == []


def test_it_runs_and_is_right_while_fetching_is_slow_and_the_pager_is_killed(namespace: Namespace) -> None:
    namespace.dump(64)
    with paged(namespace, 0.5) as pager:
        namespace.restore()
        pager.wait_resumed(10)
        namespace.send("world.bad()")
        time.sleep(0.1)  # a fifth of what the quickest of many fetches takes: not all can be in
        os.kill(pager.pid, signal.SIGKILL)
        assert namespace.answer() == []
        status = pager.wait(30)
        assert status.replaced == 1
        assert namespace.ask("world.bad()") == []


def test_a_tree_of_processes_comes_back_whole(namespace: Namespace) -> None:
    namespace.dump(24, children=2)
    with paged(namespace, 0.005) as pager:
        namespace.restore()
        assert [namespace.ask("world.bad()", index) for index in (2, 0, 1)] == [[], [], []]
        assert pager.wait(30).spaces == 3


def test_it_may_fork_and_give_memory_back_while_it_is_paged(namespace: Namespace) -> None:
    namespace.dump(64)
    with paged(namespace, 0.02) as pager:
        namespace.restore()
        pager.wait_resumed(10)
        assert namespace.ask('world.in_child("self.bad() == []")') == 0
        assert namespace.ask(f"world.memory.madvise({4}, 0, {1 << 20})") is None  # MADV_DONTNEED
        assert namespace.ask('world.in_child("self.bad() == [0]")') == 0
        pager.wait(30)
        assert namespace.ask("world.bad()") == [0]
        assert namespace.ask("any(world.memory[: 1 << 20])") is False


def test_a_program_that_ends_while_it_is_paged_ends_the_pager(namespace: Namespace) -> None:
    namespace.dump(64)
    with paged(namespace, 0.05) as pager:
        namespace.restore()
        pager.wait_resumed(10)
        namespace.send("os._exit(0)")
        assert pager.wait(20).complete


@pytest.mark.parametrize("bulk", [False, True])
def test_the_engine_gives_the_bytes_and_zero_pages_are_not_copied(namespace: Namespace, bulk: bool) -> None:
    namespace.dump(64, zeros=32)
    repository, snapshot = kept(namespace)
    with Pager(namespace.workdir, Source(repo=str(repository), snapshot=snapshot, bulk=bulk)) as pager:
        namespace.restore()
        pager.wait_resumed(10)
        assert namespace.ask("world.bad()") == []
        status = pager.wait(30)
        assert status.zero >= 32 * 256
        assert status.pages_in + status.zero == status.pages
        assert namespace.ask("world.bad()") == []


def damage(repository: Path, known: bytes) -> None:
    """Change one byte of the pack that holds these."""
    for pack in (repository / "packs").rglob("*"):
        at = pack.read_bytes().find(known) if pack.is_file() else -1
        if at >= 0:
            with pack.open("r+b") as file:
                file.seek(at)
                file.write(bytes([known[0] ^ 1]))
            return
    raise AssertionError("no pack holds these bytes as they are")


def test_a_damaged_chunk_costs_its_pages_and_no_wrong_byte(namespace: Namespace) -> None:
    namespace.dump(32)
    repository, snapshot = kept(namespace)
    damage(repository, content(0, 12)[1 << 19 :][:256])  # random bytes are stored as they are
    with Pager(namespace.workdir, Source(repo=str(repository), snapshot=snapshot)) as pager:
        namespace.restore()
        pager.wait_resumed(10)
        status = pager.wait(30)
        assert 0 < status.poisoned <= 2 * 64
        assert status.pages_in + status.zero + status.poisoned == status.pages
        killed = [namespace.ask(f'world.in_child("self.bad({at}, 8) == []")') for at in range(0, 32, 8)]
        assert killed == [0, signal.SIGBUS, 0, 0]


def test_a_recorded_order_is_kept_and_used(namespace: Namespace) -> None:
    namespace.dump(96)
    order = namespace.where / "order"
    touched = "world.scatter(256)"
    with paged(namespace, 0.0, keep_in=str(order)) as pager:
        namespace.restore()
        first = namespace.ask(touched)
        faults = pager.wait(30).faults
    assert faults > 200
    assert order.exists()
    namespace.call("kill", str(namespace.pid))
    with paged(namespace, 0.001, order=str(order)) as pager:
        namespace.restore()
        assert namespace.ask(touched) == first
        assert pager.wait(30).faults < faults / 2
