"""Programs whose memory is still on its way: killed keepers and pagers, saves in the middle, ends in the middle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_env import LiveEnv, is_gone
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceRecord
from ijfs.live.pager import working_set
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import keeper_ended
from ijfs_engine import PreflightError, Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

MIB = 256

# Random bytes, so that nothing of them is zero or shared; the sum is written when it is asked for.
PROGRAM = f"""
import hashlib, os, time
data = os.urandom({MIB} << 20)
digest = hashlib.blake2b(data).hexdigest()
open("/tmp/ready", "w").close()
while True:
    for name in os.listdir("/tmp"):
        if name.startswith("ask"):
            os.unlink(f"/tmp/{{name}}")
            open("/tmp/answer.new", "w").write(str(hashlib.blake2b(data).hexdigest() == digest))
            os.rename("/tmp/answer.new", "/tmp/answer")
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def snapshot(shared_env: LiveEnv) -> str:
    shared_env.python("large", PROGRAM)
    assert eventually(lambda: (shared_env.upper("large") / "tmp/ready").exists(), 30)
    result = shared_env.save("large")
    shared_env.stop("large", timeout_s=0)
    return result.snapshot


def memory_is_right(live_env: LiveEnv, name: str) -> bool:
    tmp = live_env.upper(name) / "tmp"
    assert live_env.exec(name, "touch", "/tmp/ask") == 0
    assert eventually(lambda: (tmp / "answer").exists(), 60)
    answer = (tmp / "answer").read_text()
    (tmp / "answer").unlink()
    return answer == "True"


def record_of(live_env: LiveEnv, name: str) -> InstanceRecord:
    return read_record(InstancePaths.of(live_env.repo, name))


def test_every_byte_comes_in_however_early_it_is_asked_for(shared_env: LiveEnv, snapshot: str) -> None:
    shared_env.restore(snapshot, "early")
    assert memory_is_right(shared_env, "early")
    shared_env.stop("early", timeout_s=0)


def test_a_save_in_the_middle_waits_for_the_memory_and_has_all_of_it(shared_env: LiveEnv, snapshot: str) -> None:
    shared_env.restore(snapshot, "middle")
    again = shared_env.save("middle")
    assert again.image_bytes > MIB << 20
    assert again.parent == snapshot
    shared_env.stop("middle", timeout_s=0)
    shared_env.restore(again.snapshot, "after", eager=True)
    assert memory_is_right(shared_env, "after")
    shared_env.stop("after", timeout_s=0)


def test_on_demand_a_copy_takes_what_it_touches_and_all_of_it_is_in_its_save(
    shared_env: LiveEnv, snapshot: str
) -> None:
    shared_env.restore(snapshot, "waits", on_demand=True)
    assert shared_env.exec("waits", "touch", "/tmp/hello") == 0  # it runs
    waiting = client.describe(shared_env.repo, "waits")
    assert waiting.memory < 0.5
    assert waiting.pid is not None
    assert procfs.memory_in_smaps(waiting.pid)["Pss"] < MIB << 19
    again = shared_env.save("waits")
    assert client.describe(shared_env.repo, "waits").memory == 1
    assert memory_is_right(shared_env, "waits")
    shared_env.stop("waits", timeout_s=0)
    shared_env.restore(again.snapshot, "whole", eager=True)
    assert memory_is_right(shared_env, "whole")
    shared_env.stop("whole", timeout_s=0)


def test_on_demand_memory_comes_in_when_the_keeper_is_gone(shared_env: LiveEnv, snapshot: str) -> None:
    """Nobody would replace a pager that dies then."""
    shared_env.restore(snapshot, "orphan", on_demand=True)
    keeper = record_of(shared_env, "orphan").keeper
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    keeper_ended(InstancePaths.of(shared_env.repo, "orphan"), keeper)
    assert eventually(lambda: client.describe(shared_env.repo, "orphan").memory == 1, 60)
    assert memory_is_right(shared_env, "orphan")
    shared_env.stop("orphan", timeout_s=0)


def test_a_killed_pager_is_replaced_and_the_program_notices_nothing(shared_env: LiveEnv, snapshot: str) -> None:
    shared_env.restore(snapshot, "paged")
    pager = record_of(shared_env, "paged").pager
    assert pager is not None
    if not is_gone(pager.pid):
        os.kill(pager.pid, signal.SIGKILL)
    assert memory_is_right(shared_env, "paged")
    with client.connect(shared_env.repo, "paged") as keeper:
        assert keeper.wait_memory().memory == 1.0
    shared_env.stop("paged", timeout_s=0)


def test_a_killed_keeper_leaves_the_pager_at_work_and_the_next_keeper_waits_for_it(
    shared_env: LiveEnv, snapshot: str
) -> None:
    shared_env.restore(snapshot, "kept")
    keeper = record_of(shared_env, "kept").keeper
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGKILL)
    assert memory_is_right(shared_env, "kept")
    again = shared_env.save("kept")
    assert again.image_bytes > MIB << 20
    shared_env.stop("kept", timeout_s=0)
    shared_env.restore(again.snapshot, "kept-again")
    assert memory_is_right(shared_env, "kept-again")
    shared_env.stop("kept-again", timeout_s=0)


def test_a_pager_killed_while_nobody_watches_it_costs_the_memory_and_no_save_takes_zeros(
    shared_env: LiveEnv, snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next keeper must tell a killed pager from one that has finished."""
    monkeypatch.setenv("IJFS_FETCH_DELAY_MS", "200")
    info = shared_env.restore(snapshot, "robbed")
    record = record_of(shared_env, "robbed")
    assert info.pid
    assert record.keeper
    assert record.pager
    for pid in procfs.processes_in("pid", procfs.namespace_id(info.pid, "pid")):
        os.kill(pid, signal.SIGSTOP)  # it would not outlive the zeros
    os.kill(record.keeper.pid, signal.SIGKILL)
    assert keeper_ended(InstancePaths.of(shared_env.repo, "robbed"))
    with client.connect(shared_env.repo, "robbed") as keeper:
        adopted = keeper.status()
        assert adopted.memory < 1
        assert not adopted.damage
        os.kill(record.pager.pid, signal.SIGKILL)
        assert eventually(lambda: keeper.status().damage)
        with pytest.raises(PreflightError, match="reads as zeros"):
            keeper.wait_memory()
    with pytest.raises(PreflightError, match="memory of `robbed` is not whole"):
        shared_env.save("robbed")
    monkeypatch.delenv("IJFS_FETCH_DELAY_MS")
    back = shared_env.restore(snapshot, "robbed", replace=True)
    assert not back.damage
    assert memory_is_right(shared_env, "robbed")
    shared_env.save("robbed")
    shared_env.stop("robbed", timeout_s=0)


def test_a_program_stopped_in_the_middle_takes_its_pager_along(shared_env: LiveEnv, snapshot: str) -> None:
    shared_env.restore(snapshot, "brief")
    pager = record_of(shared_env, "brief").pager
    assert pager is not None
    shared_env.stop("brief", timeout_s=0)
    assert eventually(lambda: is_gone(pager.pid))


def test_going_back_in_place_in_the_middle_of_coming_in(shared_env: LiveEnv, snapshot: str) -> None:
    info = shared_env.restore(snapshot, "hasty")
    for _ in range(2):
        shared_env.restore(snapshot, "hasty", replace=True)
    assert eventually(lambda: is_gone(info.pid))
    assert memory_is_right(shared_env, "hasty")
    boxes = [path.name for path in (shared_env.repo / "live" / "hasty").glob("box-*")]
    assert boxes == ["box-3"]
    shared_env.stop("hasty", timeout_s=0)


TOUCHES = f"""
import os, random, time
data = os.urandom({MIB} << 20)
order = random.Random(7).sample(range({MIB} << 4), 320)
open("/tmp/ready", "w").close()
while not os.path.exists("/tmp/go"):
    time.sleep(0.01)
sum(data[piece << 16] for piece in order)
open("/tmp/touched", "w").close()
time.sleep(1000)
"""


def pieces(data: bytes | None) -> dict[int, int]:
    """Where each 64 KiB of a working set stands in it, those of the program's large allocations."""
    found: dict[int, int] = {}
    for item in working_set.decode(data or b""):
        for at in range(item.vaddr >> 16, (item.vaddr + item.pages * 4096 - 1 >> 16) + 1):
            found.setdefault(at, len(found))
    return found


def test_what_was_touched_is_recorded_in_the_repository_and_fetched_first_next_time(
    shared_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not all of 320 are recorded: where the machine is so busy that nothing is touched for 0.1 s, the rest comes in
    # unasked. Then another program is tried.
    with Repository.open(shared_env.repo) as repository:
        for name in ("touching", "touching-2", "touching-3", "touching-4"):
            first, again = saved_twice(shared_env, name)
            ids = [bytes.fromhex(snapshot) for snapshot in (first, again)]
            assert repository.working_set(ids[0]) is None
            touch_all(shared_env, first)
            assert eventually(lambda: repository.working_set(ids[0]) is not None)  # noqa: B023
            recorded = pieces(repository.working_set(ids[0]))
            if len(recorded) >= 250:
                break
        assert len(recorded) >= 250, "the touches of the first moments"
        assert repository.working_set(ids[1], inherited=False) is None
        delay_ms = round(patient(20))
        monkeypatch.setenv("IJFS_FETCH_DELAY_MS", str(delay_ms))
        faults_s = touch_all(shared_env, again)
        assert faults_s < 320 * delay_ms / 1000, "a descendant's pages came before they were asked for"
        shared_env.restore(again, "idle")
        shared_env.stop("idle", timeout_s=0)


def saved_twice(live_env: LiveEnv, name: str) -> tuple[str, str]:
    """A snapshot of a program that is about to touch its memory, and that one's child."""
    live_env.python(name, TOUCHES)
    assert eventually(lambda: (live_env.upper(name) / "tmp/ready").exists(), 30)
    first = live_env.save(name).snapshot
    (live_env.upper(name) / "tmp/unrelated").touch()
    again = live_env.save(name).snapshot
    live_env.stop(name, timeout_s=0)
    return first, again


def touch_all(live_env: LiveEnv, snapshot: str) -> float:
    """Seconds from the restore until the program had touched its pieces; its memory is all in then."""
    began = time.monotonic()
    live_env.restore(snapshot, "touched")
    assert live_env.exec("touched", "touch", "/tmp/go") == 0
    assert eventually(lambda: (live_env.upper("touched") / "tmp/touched").exists(), 60)
    took = time.monotonic() - began
    with client.connect(live_env.repo, "touched") as keeper:
        keeper.wait_memory()
    live_env.stop("touched", timeout_s=0)
    client.remove(live_env.repo, "touched")
    return took


def test_what_cannot_be_paged_is_read_before_the_program_runs_and_said(shared_env: LiveEnv) -> None:
    shared_env.python(
        "sharing",
        "import ctypes, hashlib, mmap, os, time\n"
        "shared = mmap.mmap(-1, 9 << 20)\nshared[:] = os.urandom(9 << 20)\n"
        "file = os.memfd_create('memfd'); os.write(file, os.urandom(5 << 20))\n"
        "locked = mmap.mmap(-1, 3 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "locked[:] = os.urandom(3 << 20)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(locked))\n"
        "assert ctypes.CDLL(None).mlock(ctypes.c_void_p(at), ctypes.c_size_t(3 << 20)) == 0\n"
        "while True:\n"
        "    what = hashlib.sha256(shared[:] + os.pread(file, 5 << 20, 0) + locked[:]).hexdigest()\n"
        "    open('/tmp/new', 'w').write(what); os.rename('/tmp/new', '/tmp/now')\n"
        "    time.sleep(0.1)\n",
    )
    before = shared_env.upper("sharing") / "tmp/now"
    assert eventually(before.exists, 30)
    content = before.read_text()
    saved = shared_env.save("sharing")
    shared_env.stop("sharing", timeout_s=0)
    info = shared_env.restore(saved.snapshot, "shared")
    began = time.time()
    assert (info.read_ahead["shared"], info.read_ahead["memfd"]) == (9 << 20, 5 << 20)
    assert info.read_ahead["locked"] >= 3 << 20
    assert 0 < info.read_ahead["private"] < 9 << 20
    after = shared_env.upper("shared") / "tmp/now"
    assert eventually(lambda: after.stat().st_mtime > began, 30)
    assert after.read_text() == content
    shared_env.stop("shared", timeout_s=0)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Eight huge pages (2 MiB) in the kernel: six for the program, two for CRIU, which maps what is shared."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text(f"{int(before) + 8}\n")
    try:
        free = next(
            line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free")
        )
        if int(free.split()[1]) < 8:
            pytest.skip("the kernel found no room for eight huge pages")
        yield
    finally:
        setting.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_are_read_before_the_program_runs_and_said(shared_env: LiveEnv) -> None:
    shared_env.python(
        "huge",
        "import hashlib, mmap, os, time\nanonymous = mmap.MAP_ANONYMOUS | 0x40000\n"
        "private = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | anonymous)\nprivate[:] = os.urandom(8 << 20)\n"
        "shared = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_SHARED | anonymous)\nshared[:] = os.urandom(4 << 20)\n"
        "while True:\n"
        "    what = hashlib.sha256(private[:] + shared[:]).hexdigest()\n"
        "    open('/tmp/new', 'w').write(what); os.rename('/tmp/new', '/tmp/now')\n"
        "    time.sleep(0.1)\n",
    )
    before = shared_env.upper("huge") / "tmp/now"
    assert eventually(before.exists, 30)
    content = before.read_text()
    saved = shared_env.save("huge")
    shared_env.stop("huge", timeout_s=0)
    info = shared_env.restore(saved.snapshot, "huger")
    began = time.time()
    assert info.read_ahead["hugetlb"] == 12 << 20
    after = shared_env.upper("huger") / "tmp/now"
    assert eventually(lambda: after.stat().st_mtime > began, 30)
    assert after.read_text() == content
    shared_env.stop("huger", timeout_s=0)


def test_it_answers_before_its_memory_is_in(
    shared_env: LiveEnv, snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetches are slowed, so that the answer is seen before the rest is there; what is missing comes all the same."""
    monkeypatch.setenv("IJFS_FETCH_DELAY_MS", "50")
    info = shared_env.restore(snapshot, "quick")
    assert info.memory < 1
    assert Path(f"/proc/{info.pid}/stat").exists()
    with client.connect(shared_env.repo, "quick") as keeper:
        assert keeper.wait_memory().memory == 1
    assert memory_is_right(shared_env, "quick")
    shared_env.stop("quick", timeout_s=0)
