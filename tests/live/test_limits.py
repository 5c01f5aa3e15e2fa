"""What a sandbox may take of the machine: kept by the kernel, told by name, inherited, and gone with the sandbox."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from live_env import LiveEnv
from waiting import eventually

from ijfs.live.client import api as client
from ijfs.live.client.record import record_of
from ijfs.live.errors import LimitError
from ijfs.live.model.paths import InstancePaths, SandboxPaths
from ijfs.live.model.records import Limits
from ijfs.live.process import cgroups, procfs
from ijfs.live.sandbox import limits

MEMORY = 64 << 20

# Holds nearly all that it may have, in pages of which no two are alike.
NEARLY_FULL = """
import os, time
held = [os.urandom(1 << 20) for _ in range(44)]
open("/tmp/full", "w").close()
while True:
    time.sleep(0.05)
"""

# As many processes as it can have, each of which waits; they are ended, or their standard output would stay open.
PROCESSES = """
import os, signal
made = []
try:
    while len(made) < 500:
        made.append(os.fork() or signal.pause())
except BlockingIOError:
    pass
for pid in made:
    os.kill(pid, signal.SIGKILL)
print(len(made), flush=True)
"""

needs_groups = pytest.mark.skipif(
    not {"memory", "cpu", "pids"} <= limits.available().keys(), reason="this machine gives no control groups"
)


def groups(env: LiveEnv, name: str, generation: int = 1) -> list[Path]:
    noted = InstancePaths.of(env.repo, name).sandbox(generation).cgroups
    return [Path(line) for line in noted.read_text().splitlines()]


def group(env: LiveEnv, name: str) -> limits.Group:
    return limits.Group(tuple(path for path in groups(env, name) if path.is_dir()))


def inside(env: LiveEnv, name: str, script: str) -> subprocess.CompletedProcess[str]:
    line = client.exec_line(env.repo, name, [sys.executable, "-c", script])
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def full(shared_env: LiveEnv) -> str:
    """A program that holds nearly all the memory that it may have."""
    shared_env.python("full", NEARLY_FULL, limits=Limits(memory=MEMORY, cpus=0.5, pids=20))
    upper = InstancePaths.of(shared_env.repo, "full").sandbox(1)
    assert eventually(lambda: bool(list(upper.root.glob("**/full"))))
    return "full"


@needs_groups
def test_a_program_at_its_limit_of_memory_is_saved_and_its_copies_have_the_same_limits(
    shared_env: LiveEnv, full: str
) -> None:
    info = client.describe(shared_env.repo, full)
    assert info.usage is not None
    assert MEMORY * 0.7 < info.usage.memory <= MEMORY
    with client.connect(shared_env.repo, full) as keeper:
        snapshot = keeper.save("full").snapshot
    (copy,) = client.fork(shared_env.repo, snapshot, ["copy"], limits=Limits(pids=30))
    with client.connect(shared_env.repo, "copy") as keeper:
        copy = keeper.wait_memory()
    for name, pids in ((full, 20), ("copy", 30)):
        found = client.describe(shared_env.repo, name)
        assert (found.status, found.oom_kills) == ("running", 0)
        assert found.limits == Limits(memory=MEMORY, cpus=0.5, pids=pids)
        of_kernel = group(shared_env, name).file("memory.max", "memory.limit_in_bytes")
        assert of_kernel is not None
        assert int(of_kernel.read_text()) == MEMORY
        of_kernel = group(shared_env, name).file("pids.max")
        assert of_kernel is not None
        assert int(of_kernel.read_text()) == pids
    assert copy.pid is not None
    at = [cgroups.group_of(hierarchy, copy.pid) for hierarchy in cgroups.hierarchies()]
    assert {path for path in groups(shared_env, "copy") if path.is_dir()} <= set(at)


@needs_groups
def test_a_command_that_takes_too_much_memory_is_killed_and_told_of_it(shared_env: LiveEnv, full: str) -> None:
    done = inside(shared_env, full, f"held = b'x' * {2 * MEMORY}")
    assert done.returncode == 128 + signal.SIGKILL
    assert "the program ran out of its 64 MB of memory" in done.stderr
    assert client.describe(shared_env.repo, full).oom_kills == 1


@needs_groups
def test_a_program_has_only_so_many_processes(shared_env: LiveEnv, full: str) -> None:
    done = inside(shared_env, full, PROCESSES)
    assert 0 < int(done.stdout.split()[0]) < 20


@needs_groups
def test_the_end_of_a_program_that_takes_too_much_memory_is_told(shared_env: LiveEnv) -> None:
    shared_env.python("hog", f"held = b'x' * {2 * MEMORY}", limits=Limits(memory=MEMORY))
    assert eventually(lambda: client.describe(shared_env.repo, "hog").status == "exited")
    ended = client.describe(shared_env.repo, "hog")
    assert (ended.exit_status, ended.note) == (137, "ran out of its 64 MB of memory")
    assert ended.oom_kills == 1


@needs_groups
def test_a_fork_bomb_ends_at_a_limit_that_nobody_asked_for(shared_env: LiveEnv) -> None:
    shared_env.command("plain", "sleep 1000")
    file = group(shared_env, "plain").file("pids.max")
    assert file is not None
    assert int(file.read_text()) == limits.default_processes()


@needs_groups
def test_groups_are_gone_with_the_sandbox_also_where_its_keeper_was_killed(shared_env: LiveEnv) -> None:
    shared_env.command("short", "sleep 1000")
    info = client.describe(shared_env.repo, "short")
    made = [path for path in groups(shared_env, "short") if path.is_dir()]
    assert made
    record = record_of(InstancePaths.of(shared_env.repo, "short"))
    assert record.keeper is not None
    assert info.pid is not None
    os.kill(record.keeper.pid, signal.SIGKILL)
    assert eventually(lambda: not procfs.is_alive(record.keeper))
    os.kill(info.pid, signal.SIGKILL)
    assert eventually(lambda: not procfs.is_alive(record.program))
    shared_env.command("next", "sleep 1000")  # whoever comes next removes them
    assert not [path for path in made if path.exists()]
    made = [path for path in groups(shared_env, "next") if path.is_dir()]
    with client.connect(shared_env.repo, "next") as keeper:
        keeper.stop(timeout_s=0)
    assert not [path for path in made if path.exists()]


REAL_TIME = """
import os, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
open("/tmp/real-time", "w").close()
time.sleep(1000)
"""


def test_a_program_with_a_real_time_priority_runs_and_comes_back(shared_env: LiveEnv) -> None:
    outside = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
    if subprocess.run([sys.executable, "-c", outside], check=False, capture_output=True).returncode:
        pytest.skip("this machine gives no real-time priorities")
    shared_env.python("timely", REAL_TIME)
    assert eventually((shared_env.upper("timely") / "tmp/real-time").exists)
    shared_env.restore(shared_env.save("timely").snapshot, "again")
    root = client.describe(shared_env.repo, "again").pid
    assert root is not None
    assert os.SCHED_FIFO in {os.sched_getscheduler(pid) for pid in procfs.descendants(root)}


@needs_groups
def test_a_stray_group_is_removed_by_the_next_start_where_its_maker_is_gone(shared_env: LiveEnv) -> None:
    parent = group(shared_env, "plain").directories[0].parent
    child = subprocess.Popen(["true"])
    child.wait()
    stray, own = parent / f"{child.pid}-stray", parent / f"{os.getpid()}-own"
    stray.mkdir()
    own.mkdir()
    try:
        shared_env.command("later", "sleep 1000")
        assert not stray.exists()
        assert own.exists()
    finally:
        own.rmdir()


@needs_groups
def test_less_memory_than_a_program_has_already_is_refused(shared_env: LiveEnv, full: str) -> None:
    with pytest.raises(LimitError, match=r"it may have 1 MB of memory, and has \d+ MB already"):
        limits.Group(group(shared_env, full).directories, Limits(memory=1 << 20)).apply()


HELD = "import os, time\nheld = os.urandom(48 << 20)\nopen('/tmp/full', 'w').close()\ntime.sleep(1000)"

FAMILY = """
import os, time
for _ in range(11):
    if not os.fork():
        break
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def held(shared_env: LiveEnv) -> str:
    """The snapshot of a live program without limits that holds 48 MB."""
    shared_env.python("held", HELD)
    box = InstancePaths.of(shared_env.repo, "held").sandbox(1)
    assert eventually(lambda: bool(list(box.root.glob("**/full"))))
    with client.connect(shared_env.repo, "held") as keeper:
        return keeper.save("held").snapshot


@needs_groups
@pytest.mark.parametrize("eager", [False, True])
def test_a_restore_with_less_memory_than_was_saved_is_refused_and_the_live_program_runs_on(
    shared_env: LiveEnv, held: str, eager: bool
) -> None:
    before = client.describe(shared_env.repo, "held").pid
    with pytest.raises(LimitError, match=r"^it may have 30 MB of memory, and had [45]\d MB when") as refused:
        client.restore(shared_env.repo, held, "held", replace=True, eager=eager, limits=Limits(memory=30 << 20))
    assert re.search(r"`--memory \d+M` is enough", refused.value.hint or "")
    now = client.describe(shared_env.repo, "held")
    assert (now.status, now.pid, now.limits) == ("running", before, Limits())


@needs_groups
def test_a_fork_with_less_memory_than_was_saved_is_refused_but_on_demand(shared_env: LiveEnv, held: str) -> None:
    with pytest.raises(LimitError, match="it may have 30 MB of memory"):
        client.fork(shared_env.repo, held, ["narrow"], limits=Limits(memory=30 << 20))
    client.fork(shared_env.repo, held, ["some"], on_demand=True, limits=Limits(memory=30 << 20))
    assert client.describe(shared_env.repo, "some").oom_kills == 0


@needs_groups
def test_a_restore_that_may_just_fit_is_judged_when_all_its_memory_is_in(shared_env: LiveEnv, held: str) -> None:
    info = client.restore(shared_env.repo, held, "fits", limits=Limits(memory=72 << 20))
    assert (info.memory, info.status) == (1, "running")


@needs_groups
def test_fewer_processes_than_were_saved_are_refused(shared_env: LiveEnv) -> None:
    shared_env.python("family", FAMILY)
    file = group(shared_env, "family").file("pids.current")
    assert file is not None
    assert eventually(lambda: int(file.read_text()) == 13)  # the first one looks after the others
    with client.connect(shared_env.repo, "family") as keeper:
        snapshot = keeper.save("family").snapshot
    with pytest.raises(LimitError, match="it may have 12 processes and threads, and had 13 when it was saved"):
        client.restore(shared_env.repo, snapshot, "fewer", limits=Limits(pids=12))
    assert client.restore(shared_env.repo, snapshot, "as-many", limits=Limits(pids=13)).status == "running"


# -- version 2, whose files are laid out in a directory -------------------------------------------------------------


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    """A group as version 2 has it, as far as files go."""
    for name, text in {
        "memory.max": "max\n",
        "memory.swap.max": "max\n",
        "memory.current": "12345678\n",
        "memory.stat": "anon 1000\nfile 5000\ninactive_file 345678\n",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n",
        "cpu.max": "max 100000\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
        "pids.max": "max\n",
        "pids.current": "17\n",
        "io.max": "",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_limits_are_written_as_version_2_reads_them(version_2: Path) -> None:
    limited = limits.Group((version_2,), Limits(memory=4 << 30, cpus=1.5, pids=500))
    limited.apply()
    names = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")
    assert [(version_2 / name).read_text() for name in names] == [str(4 << 30), "0", "150000 100000", "500"]
    with limited.lifted():
        assert [(version_2 / name).read_text() for name in names] == ["max", "max", "max 100000", "max"]
    assert (version_2 / "pids.max").read_text() == "500"


def test_version_2_tells_what_is_taken(version_2: Path) -> None:
    usage = limits.Group((version_2,)).usage()
    assert msgspec.to_builtins(usage) == {"memory": 12000000, "cpu_s": 2.5, "pids": 17, "oom_kills": 2}


def test_the_nearest_group_of_version_2_that_may_hand_on_controllers_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, service = tmp_path, tmp_path / "system.slice" / "jupyter.service"
    service.mkdir(parents=True)
    for path, handed_on in ((root, "cpu memory pids"), (service.parent, "memory pids"), (service, "")):
        (path / "cgroup.controllers").write_text("cpu memory pids")
        (path / "cgroup.subtree_control").write_text(handed_on)
        (path / "cgroup.procs").write_text("" if path == service.parent else "1\n")
        if path != root:
            (path / "cgroup.type").write_text("domain\n")
    (service.parent / "cgroup.procs").write_text("7\n")
    hierarchy = cgroups.Hierarchy(2, root, "/")
    assert limits.place_in(hierarchy, service, frozenset({"memory"})) == service.parent
    assert limits.place_in(hierarchy, service, frozenset({"cpu"})) == root
    # What only a group further up can hand on is there, too.
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [hierarchy])
    monkeypatch.setattr(cgroups, "group_of", lambda _: service)
    assert limits.available() == {"memory": 2, "cpu": 2, "pids": 2}


def test_hierarchies_of_both_versions_are_found(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "30 1 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw\n"
        "31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"
        "32 30 0:28 /docker/1 /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 30 0:29 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n"
        "34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    )
    found = cgroups.hierarchies(table)
    assert [(one.version, set(one.controllers)) for one in found] == [(2, set()), (1, {"cpu", "cpuacct"}), (1, {"io"})]
    assert found[1].path_of("/docker/1") == found[1].mount


def test_what_was_noted_is_removed(tmp_path: Path) -> None:
    (tmp_path / "cgroup" / "ijfs" / "1-a").mkdir(parents=True)
    paths = SandboxPaths(tmp_path / "box-1")
    paths.root.mkdir()
    paths.cgroups.write_text(f"{tmp_path}/cgroup/ijfs/1-a\n{tmp_path}/cgroup/ijfs/gone\n")
    limits.remove_all(tmp_path)
    assert not paths.cgroups.exists()
    assert list((tmp_path / "cgroup").iterdir()) == []
