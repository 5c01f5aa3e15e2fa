"""Saves that overlap: the program goes on at the thaw, what was saved goes into the repository in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_env import LiveEnv, is_gone, open_env
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.client.connection import KeeperClient
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import Event
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import SaveResult
from ijfs.live.process import procfs
from ijfs_engine import IjfsError, Repository, Snapshot
from ijfs_engine.errors import StorageError

pytestmark = [pytest.mark.root, pytest.mark.criu]

# Other noise at each save, so that there is something to store.
NOISY = """
import os, time
data = bytearray(os.urandom(24 << 20))
print("up", flush=True)
turn = 0
while True:
    turn += 1
    open("/tmp/turn.new", "w").write(str(turn))
    os.rename("/tmp/turn.new", "/tmp/turn")
    if os.path.exists("/tmp/again"):
        data[:] = os.urandom(len(data))
        os.unlink("/tmp/again")
    time.sleep(0.02)
"""


def noisy(live_env: LiveEnv, name: str) -> None:
    live_env.python(name, NOISY)
    log = Path(client.describe(live_env.repo, name).log)
    assert eventually(lambda: "up" in log.read_text(), 30)


def renew(live_env: LiveEnv, name: str) -> None:
    """Have the program fill its memory with other bytes."""
    assert live_env.exec(name, "touch", "/tmp/again") == 0
    assert eventually(lambda: not (live_env.upper(name) / "tmp/again").exists())


# Loaded by every Python that a test starts: a keeper's commits wait while a file is there, as on a slow disk.
SLOW = """
import os, sys, time
if "ijfs.live.keeper.forkserver" in sys.orig_argv:
    from ijfs_engine.storage.session import Session
    commit = Session.commit_snapshot
    def slow(*args, **kwargs):
        while os.path.exists(os.environ["IJFS_TEST_SLOW"]):
            time.sleep(0.01)
        return commit(*args, **kwargs)
    Session.commit_snapshot = slow
"""


@pytest.fixture(autouse=True)
def slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers that look for the file that `no_commits` makes."""
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(directory), *os.environ.get("PYTHONPATH", "").split(":")]))
    monkeypatch.setenv("IJFS_TEST_SLOW", str(tmp_path / "slow"))


@contextlib.contextmanager
def no_commits() -> Iterator[Callable[[], None]]:
    """Until the block ends, or what it gets is called."""
    path = Path(os.environ["IJFS_TEST_SLOW"])
    path.touch()

    def go_on() -> None:
        path.unlink(missing_ok=True)

    try:
        yield go_on
    finally:
        go_on()


def history(live_env: LiveEnv) -> list[Snapshot]:
    """All snapshots, oldest first."""
    with Repository.open(live_env.repo) as repository:
        return sorted(repository.snapshots(), key=lambda one: one.created_ns)


def saving(live_env: LiveEnv, name: str) -> int:
    return client.describe(live_env.repo, name).saving


def test_a_save_that_is_not_waited_for_returns_at_the_thaw_and_is_durable_later(live_env: LiveEnv) -> None:
    noisy(live_env, "quick")
    with client.connect(live_env.repo, "quick") as keeper, no_commits() as go_on:
        early = keeper.save("not waited for", wait=False)
        assert (early.snapshot, early.durable_s) == ("", None)
        assert history(live_env) == []
        assert keeper.status().saving == 1
        assert {"wait", "hold", "freeze", "dump", "workspace", "thaw", "total"} <= early.phases.keys()
        go_on()
        done = keeper.wait_save(early.number)
    assert [one.id.hex() for one in history(live_env)] == [done.snapshot]
    assert client.describe(live_env.repo, "quick").snapshot == done.snapshot
    assert (saving(live_env, "quick"), done.frozen_s) == (0, early.frozen_s)
    assert done.durable_s is not None
    assert done.durable_s >= early.phases["total"] > early.frozen_s
    assert {"ingest", "commit"} <= done.phases.keys()
    assert "ingest" not in early.phases


def test_a_second_save_freezes_while_the_first_is_stored_and_a_third_waits(live_env: LiveEnv) -> None:
    noisy(live_env, "busy")
    notices: list[str] = []

    def hear(event: Event) -> None:
        notices.append(getattr(event, "text", ""))
        if "saves before is durable" in notices[-1]:
            go_on()

    with client.connect(live_env.repo, "busy", on_event=hear) as keeper, no_commits() as go_on:
        numbers = [keeper.save("one", wait=False).number]
        renew(live_env, "busy")
        numbers.append(keeper.save("two", wait=False).number)
        assert keeper.status().saving == 2
        assert history(live_env) == []
        renew(live_env, "busy")
        numbers.append(keeper.save("three", wait=False).number)
        assert any("until one of the 2 saves before is durable" in notice for notice in notices)
        results = [keeper.wait_save(number) for number in numbers]
    assert [result.parent for result in results] == [None, results[0].snapshot, results[1].snapshot]
    # Files are the ones of their own moment, also where a save was compared with one older than its parent.
    turns = []
    with Repository.open(live_env.repo) as repository:
        reader = repository.reader()
        for result in results:
            root = repository.snapshot(bytes.fromhex(result.snapshot)).root
            file = reader.open(reader.lookup(root, "files/tmp/turn"))
            turns.append(int(file.read(0, file.size)))
    assert turns == sorted(set(turns))
    live_env.restore(results[1].snapshot, "second")
    upper = live_env.upper("second") / "tmp/turn"
    assert eventually(lambda: int(upper.read_text()) > turns[1])


def test_stop_waits_until_what_was_saved_is_durable_and_the_keeper_is_gone(live_env: LiveEnv) -> None:
    noisy(live_env, "ending")
    keeper_process = read_record(InstancePaths.of(live_env.repo, "ending")).keeper
    with client.connect(live_env.repo, "ending") as keeper, no_commits() as go_on:
        keeper.save("the last", wait=False)
        threading.Timer(0.3, go_on).start()
        info = keeper.stop(timeout_s=0)
    assert not procfs.is_alive(keeper_process)
    assert [one.message for one in history(live_env)] == ["the last"]
    assert info.snapshot == history(live_env)[0].id.hex()
    with Repository.open(live_env.repo) as repository:
        assert repository.pins() == []
    client.remove(live_env.repo, "ending")


def test_what_was_saved_is_stored_also_when_the_program_ends_before(live_env: LiveEnv) -> None:
    noisy(live_env, "mortal")
    info = client.describe(live_env.repo, "mortal")
    with client.connect(live_env.repo, "mortal") as keeper, no_commits() as go_on:
        keeper.save("alive", wait=False)
        assert info.pid is not None
        os.kill(info.pid, signal.SIGKILL)
        assert eventually(lambda: client.describe(live_env.repo, "mortal").status == "exited")
        assert saving(live_env, "mortal") == 1
        go_on()
    client.remove(live_env.repo, "mortal")  # waits for the keeper
    assert [one.message for one in history(live_env)] == ["alive"]


def test_going_back_in_place_and_sigterm_wait_for_saves(live_env: LiveEnv) -> None:
    noisy(live_env, "back")
    first = live_env.save("back", "first").snapshot
    renew(live_env, "back")
    with client.connect(live_env.repo, "back") as keeper, no_commits() as go_on:
        keeper.save("second", wait=False)
        threading.Timer(0.3, go_on).start()
        keeper.restore(first)
    assert [one.message for one in history(live_env)] == ["first", "second"]
    renew(live_env, "back")
    process = read_record(InstancePaths.of(live_env.repo, "back")).keeper
    assert process is not None
    with client.connect(live_env.repo, "back") as keeper, no_commits():
        keeper.save("third", wait=False)
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.3)
        assert client.is_running(live_env.repo, "back")
    assert eventually(lambda: is_gone(process.pid), 20)
    messages = {one.message: one for one in history(live_env)}
    assert [parent.hex() for parent in messages["third"].parents] == [first]


def test_a_keeper_killed_in_the_ingest_leaves_nothing_half_visible_and_the_next_one_says_so(live_env: LiveEnv) -> None:
    noisy(live_env, "cut")
    first = live_env.save("cut", "before").snapshot
    renew(live_env, "cut")
    process = read_record(InstancePaths.of(live_env.repo, "cut")).keeper
    assert process is not None
    with client.connect(live_env.repo, "cut") as keeper, no_commits():
        keeper.save("never", wait=False)
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: not Path(f"/proc/{process.pid}").exists())
    info = client.describe(live_env.repo, "cut")
    assert (info.saving, info.save_error) == (0, "the keeper was killed before it was durable")
    assert [one.id.hex() for one in history(live_env)] == [first]
    with Repository.open(live_env.repo) as repository:
        assert repository.fsck().clean
    result = live_env.save("cut", "after")
    assert result.parent == first
    assert any("an earlier save was not stored" in warning for warning in result.warnings)
    assert client.describe(live_env.repo, "cut").save_error == ""


def test_a_save_that_fails_after_the_answer_is_shown_and_keeps_the_program_from_being_stopped(small_disk: Path) -> None:
    with open_env(small_disk) as live_env:
        live_env.command("full", "while true; do sleep 0.05; done")
        first = live_env.save("full", "before").snapshot
        filler = small_disk / "filler"
        filler.write_bytes(os.urandom(1 << 20) * 45)
        live_env.exec("full", "dd", "if=/dev/urandom", "of=/dev/shm/random", "bs=1M", "count=30", "status=none")
        with client.connect(live_env.repo, "full") as keeper:
            lost = keeper.save("too much", wait=False)
            with pytest.raises(IjfsError, match="the program was not stopped"):
                keeper.stop(timeout_s=0)
            with pytest.raises(StorageError):
                keeper.wait_save(lost.number)
            assert "space" in keeper.status().save_error
            filler.unlink()
            live_env.exec("full", "rm", "/dev/shm/random")
            again = keeper.save("room again")
        assert again.parent == first
        assert any("an earlier save was not stored" in warning for warning in again.warnings)
        assert client.describe(live_env.repo, "full").save_error == ""


def test_a_save_that_fails_leaves_the_next_in_line_to_be_stored_on_the_older_parent(small_disk: Path) -> None:
    with open_env(small_disk) as live_env:
        live_env.command("two", "while true; do sleep 0.05; done")
        first = live_env.save("two", "before").snapshot
        with client.connect(live_env.repo, "two") as keeper:
            (small_disk / "filler").write_bytes(os.urandom(1 << 20) * 45)
            live_env.exec("two", "dd", "if=/dev/urandom", "of=/dev/shm/random", "bs=1M", "count=30", "status=none")
            live_env.exec("two", "sh", "-c", "echo kept > /tmp/kept")
            lost = keeper.save("too much", wait=False)
            live_env.exec("two", "rm", "/dev/shm/random")
            kept = saved_when_there_is_room(keeper, "small")
            with pytest.raises(StorageError):
                keeper.wait_save(lost.number)
            done = keeper.wait_save(kept.number)
        assert done.parent == first
        with Repository.open(live_env.repo) as repository:
            reader = repository.reader()
            root = repository.snapshot(bytes.fromhex(done.snapshot)).root
            file = reader.open(reader.lookup(root, "files/tmp/kept"))
            assert file.read(0, file.size) == b"kept\n"
            assert repository.fsck().clean


def saved_when_there_is_room(keeper: KeeperClient, message: str) -> SaveResult:
    """Until the first save has given back what it wrote, the second may not find room for the program's files."""
    deadline = time.monotonic() + patient(30)
    while True:
        try:
            return keeper.save(message, wait=False)
        except StorageError:
            if time.monotonic() > deadline:
                raise


def test_a_program_stopped_by_its_save_is_not_waited_for_by_hooks(live_env: LiveEnv) -> None:
    script = "import ijfs, time; ijfs.before_save(lambda: open('/tmp/told', 'a').write('x')); print('up', flush=True)\n"
    live_env.python("hooked", script + "while True: time.sleep(1)")
    assert eventually(lambda: "up" in Path(client.describe(live_env.repo, "hooked").log).read_text())
    upper = live_env.upper("hooked")
    live_env.save("hooked", stop=True)
    assert "did not answer" not in InstancePaths.of(live_env.repo, "hooked").keeper_log.read_text()
    assert (upper / "tmp/told").read_text() == "x"


def test_hooks_are_known_to_the_keeper_that_adopts_a_program(live_env: LiveEnv) -> None:
    script = "import ijfs, time; ijfs.before_save(lambda: open('/tmp/told', 'a').write('x')); print('up', flush=True)\n"
    live_env.python("hooks", script + "while True: time.sleep(1)")
    assert eventually(lambda: "up" in Path(client.describe(live_env.repo, "hooks").log).read_text())
    process = read_record(InstancePaths.of(live_env.repo, "hooks")).keeper
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{process.pid}").exists())  # its threads too: one could still accept
    live_env.save("hooks")
    assert (live_env.upper("hooks") / "tmp/told").read_text() == "x"


def test_a_keeper_whose_repository_is_deleted_ends_with_its_program(live_env: LiveEnv, tmp_path: Path) -> None:
    Repository.init(tmp_path / "doomed").close()
    info = client.start(tmp_path / "doomed", client.InstanceSpec(name="d", argv=("sleep", "600"), cwd="/"))
    process = read_record(InstancePaths.of(tmp_path / "doomed", "d")).keeper
    assert process is not None
    shutil.rmtree(tmp_path / "doomed")
    assert eventually(lambda: is_gone(info.pid) and is_gone(process.pid), 15)


def test_a_client_may_leave_before_its_save_is_durable(live_env: LiveEnv) -> None:
    noisy(live_env, "left")
    keeper = KeeperClient.open(InstancePaths.of(live_env.repo, "left"))
    with no_commits():
        keeper.save("and gone", wait=False)
        keeper.close()
    assert eventually(lambda: saving(live_env, "left") == 0, 20)
    assert [one.message for one in history(live_env)] == ["and gone"]
