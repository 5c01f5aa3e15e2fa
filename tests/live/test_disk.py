"""Programs with a disk of their own: the inode numbers of their files stay, ENOSPC says how large it is, and nothing of
it is left when they have gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_env import LiveEnv, is_gone
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.client.adopt import Adoption
from ijfs.live.client.files import program_files
from ijfs.live.model.paths import InstancePaths, SandboxPaths
from ijfs.live.model.record_file import read_record
from ijfs.live.process import fork_request
from ijfs.live.sandbox import disk
from ijfs_engine import Repository, export_tree

pytestmark = [pytest.mark.root, pytest.mark.criu]

SIZE = 1 << 30


@pytest.fixture(autouse=True)
def _loop_devices(live_machine: None, tmp_path: Path) -> Iterator[None]:
    """Skips where no loop device can be had; afterwards none has a file of the test's."""
    paths = SandboxPaths(tmp_path / "probe")
    paths.root.mkdir()
    try:
        disk.make(paths, disk.SMALLEST)
    except Exception as error:
        pytest.skip(f"no disk can be made here: {error}")
    subprocess.run(["umount", paths.layers], check=True)
    yield
    assert eventually(lambda: str(tmp_path) not in _attached())


def _attached() -> str:
    """The files behind all loop devices."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return "".join(found)


def _numbers(env: LiveEnv, name: str, *paths: str) -> list[int]:
    root = Path(f"/proc/{client.describe(env.repo, name).pid}/root")
    return [os.lstat(root / path.lstrip("/")).st_ino for path in paths]


FILES = """
import os, socket, time
os.makedirs("/srv/ijfs-test/deep")
os.chdir("/srv/ijfs-test")
for number in range(300):
    open(f"deep/{number}", "w").write(str(number))
for number in range(0, 300, 2):
    os.remove(f"deep/{number}")
os.link("deep/1", "second name")
os.symlink("deep/1", "link")
os.mkfifo("pipe")
os.mknod("device", 0o20600, os.makedev(1, 3))
socket.socket(socket.AF_UNIX).bind("socket")
with open("sparse", "wb") as sparse:
    sparse.truncate(10 << 20)
    sparse.seek(5 << 20)
    sparse.write(b"in the middle")
os.setxattr("sparse", "user.note", b"noted")
unlinked = open("unlinked", "w+")
unlinked.write("still here")
unlinked.flush()
os.remove("unlinked")
os.rename("/srv/ijfs-test/deep/3", "/srv/ijfs-test/moved")
open("/tmp/ready", "w").close()
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
unlinked.seek(0)
open("/tmp/said", "w").write(unlinked.read())
time.sleep(600)
"""
NAMES = ["second name", "link", "pipe", "device", "socket", "sparse", "moved", "deep", "deep/1", "deep/299"]


def test_files_of_every_kind_keep_their_inode_numbers_in_forks_and_grandchildren(live_env: LiveEnv) -> None:
    work = str(live_env.work)  # a volume: its files are moved to a layer of their own
    live_env.python("first", FILES.replace("/srv/ijfs-test", f"{work}/ijfs-test"), cwd=work, disk=SIZE, privileged=True)
    root = Path(f"/proc/{client.describe(live_env.repo, 'first').pid}/root")
    assert eventually((root / "tmp/ready").exists, 20)
    paths = [f"{work}/ijfs-test/{name}" for name in NAMES] + ["/tmp", "/tmp/ready", work]
    began = _numbers(live_env, "first", *paths)
    assert began[0] == began[8], "two names of one file"
    saved = live_env.save("first").snapshot
    live_env.restore(saved, "second")
    live_env.restore(live_env.save("second").snapshot, "third")
    for name in ("second", "third"):
        assert _numbers(live_env, name, *paths) == began
        there = Path(f"/proc/{client.describe(live_env.repo, name).pid}/root")
        assert (there / work[1:] / "ijfs-test/sparse").stat().st_blocks * 512 < 1 << 20
        assert os.getxattr(there / work[1:] / "ijfs-test/sparse", "user.note") == b"noted"
        (there / "tmp/go").touch()
        assert eventually((there / "tmp/said").exists, 20)
        assert (there / "tmp/said").read_text() == "still here"
        assert live_env.exec(name, "sh", "-c", f"echo new > {work}/ijfs-test/new") == 0
        assert _numbers(live_env, name, f"{work}/ijfs-test/new")[0] not in began


DATABASE = """
import os, sqlite3, sys, time
mode, path = sys.argv[1:]
os.makedirs(os.path.dirname(path), exist_ok=True)
base = sqlite3.connect(path, isolation_level=None)
base.execute(f"pragma journal_mode={mode}")
base.execute("create table if not exists t (who text)")
base.execute("begin")
base.execute("insert into t values ('before')")
open("/tmp/ready", "w").close()
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
base.execute("insert into t values (?)", (open("/tmp/go").read(),))
base.execute("commit")
base.execute("insert into t values ('later')")
other = sqlite3.connect(path)
open("/tmp/part", "w").write(" ".join(row[0] for row in other.execute("select who from t order by rowid")))
os.rename("/tmp/part", "/tmp/said")
time.sleep(600)
"""


@pytest.mark.parametrize(("mode", "whose"), [("delete", "program"), ("wal", "program"), ("delete", "machine")])
def test_sqlite_goes_on_in_an_open_transaction_in_the_original_and_in_forks(
    live_env: LiveEnv, mode: str, whose: str
) -> None:
    path = "/srv/ijfs-test/base"
    if whose == "machine":  # a database that was there before, which the program writes to
        path = str(live_env.work / "base")
        with contextlib.closing(sqlite3.connect(path)) as base:
            base.execute("create table t (who text)")
    argv = (sys.executable, "-c", DATABASE, mode, path)
    client.start(live_env.repo, client.InstanceSpec(name="first", argv=argv, cwd=str(live_env.work), disk=SIZE))
    assert eventually((Path(client.describe(live_env.repo, "first").log).parents[2] / "tmp/ready").exists, 20)
    saved = live_env.save("first")
    assert not [warning for warning in saved.warnings if "SQLite" in warning]
    names = ("first", "second", "third")
    for name in names[1:]:
        live_env.restore(saved.snapshot, name)
    for name in names:
        root = Path(f"/proc/{client.describe(live_env.repo, name).pid}/root")
        (root / "tmp/new").write_text(name)
        os.rename(root / "tmp/new", root / "tmp/go")
        assert eventually((root / "tmp/said").exists, 20), Path(client.describe(live_env.repo, name).log).read_text()
        assert (root / "tmp/said").read_text() == f"before {name} later"


def test_ipythons_history_is_written_on_in_a_fork(live_env: LiveEnv) -> None:
    kernel = live_env.kernel("first", disk=SIZE, env={"IPYTHONDIR": "/srv/ijfs-test/ipython"})
    assert kernel.run("40 + 2") == "42"
    fork = live_env.talk(live_env.restore(live_env.save("first").snapshot, "second"))
    assert fork.run("said = 'in the fork'; 6 * 7") == "42"
    fork.run("history = get_ipython().history_manager; history.writeout_cache()")
    # By its own connection: one that is opened now, while IPython's thread writes, said now and then "disk I/O error".
    # sqlite tells files apart by device and inode, and the device of a restored overlay may be another.
    lines = fork.run("history.db.execute('select source from history').fetchall()")
    assert "40 + 2" in lines
    assert "in the fork" in lines


FILLING = """
import errno, os, time
try:
    with open("/big", "wb", buffering=0) as big:
        for _ in range(400):
            big.write(bytes(1 << 20))
except OSError as error:
    os.remove("/big")
    print(errno.errorcode[error.errno], flush=True)
time.sleep(600)
"""


def test_a_disk_that_is_full_is_said_inside_and_the_machine_has_room(live_env: LiveEnv) -> None:
    live_env.python("small", FILLING, disk=100 << 20)
    assert eventually(lambda: Path(client.describe(live_env.repo, "small").log).read_text() == "ENOSPC\n", 60)


def test_what_an_ended_program_wrote_can_be_read_and_it_begins_again_with_it(live_env: LiveEnv) -> None:
    work = live_env.work
    live_env.command("ends", "echo said; echo kept > file; test -e again && exec sleep 600", cwd=str(work), disk=SIZE)
    assert eventually(lambda: client.describe(live_env.repo, "ends").status == "exited", 20)
    assert Path(client.describe(live_env.repo, "ends").log).read_text() == "said\n"
    with program_files(live_env.repo, "ends") as files:
        node = files.node(str(work / "file"))
        assert b"".join(piece for _, piece in node.pieces()) == b"kept\n"
        node.close()
    with Repository.open(live_env.repo) as repository:
        adoption = Adoption(repository, "ends")
        list(adoption.take_home(adoption.compare(()).steps))
    assert (work / "file").read_text() == "kept\n"
    (work / "again").touch()
    spec = client.InstanceSpec(name="ends", argv=("sh", "-c", "cat file; exec sleep 600"), cwd=str(work), disk=SIZE)
    client.start(live_env.repo, spec, again=True)
    assert eventually(lambda: Path(client.describe(live_env.repo, "ends").log).read_text().endswith("kept\n"), 20)


def test_a_new_keeper_saves_what_was_written_after_the_old_one_was_killed(live_env: LiveEnv) -> None:
    live_env.python("lives", FILES, disk=SIZE, privileged=True)
    root = Path(f"/proc/{client.describe(live_env.repo, 'lives').pid}/root")
    assert eventually((root / "tmp/ready").exists, 20)
    keeper_process = read_record(InstancePaths.of(live_env.repo, "lives")).keeper
    assert keeper_process is not None
    os.kill(keeper_process.pid, signal.SIGKILL)
    assert eventually(lambda: is_gone(keeper_process.pid))
    (root / "tmp/late").write_text("written without a keeper")
    began = _numbers(live_env, "lives", "/tmp/late")
    saved = live_env.save("lives").snapshot
    live_env.stop("lives", timeout_s=0)
    live_env.restore(saved, "back")
    assert _numbers(live_env, "back", "/tmp/late") == began
    there = Path(f"/proc/{client.describe(live_env.repo, 'back').pid}/root")
    assert (there / "tmp/late").read_text() == "written without a keeper"


LOAD = """
import os, threading
def write(number):
    with open(f"log{number}", "ab", buffering=0) as log, open(f"TOLD/{number}", "w") as told:
        for line in range(1 << 30):
            log.write(b"%10d\\n" % line)
            os.fsync(log.fileno())
            os.pwrite(told.fileno(), b"%10d" % line, 0)
            for name in range(20):
                with open(f"{number}-{line}-{name}", "wb") as other:
                    other.write(bytes(5000))
            for name in range(20):
                os.remove(f"{number}-{line}-{name}")
for number in range(3):
    threading.Thread(target=write, args=(number,)).start()
"""


def _lines(told: Path) -> list[int]:
    texts = [(told / str(number)).read_text() if (told / str(number)).exists() else "" for number in range(3)]
    return [int(text or -1) for text in texts]


def test_what_was_fsynced_is_there_after_keeper_and_program_were_killed_under_load(live_env: LiveEnv) -> None:
    told = live_env.work / "told"
    told.mkdir()
    script = LOAD.replace("TOLD", str(told))
    live_env.python("busy", script, cwd="/var/tmp", disk=SIZE, bind=(str(told),))
    assert eventually(lambda: min(_lines(told)) > 5, 60)
    saved, at_save = live_env.save("busy").snapshot, _lines(told)
    assert eventually(lambda: min(_lines(told)) > max(at_save) + 5, 60)
    record = read_record(InstancePaths.of(live_env.repo, "busy"))
    for process in (record.keeper, record.program):
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
    assert eventually(lambda: all(is_gone(one.pid) for one in (record.keeper, record.program) if one is not None))
    fsynced = _lines(told)
    with program_files(live_env.repo, "busy") as files:
        for number, last in enumerate(fsynced):
            node = files.node(f"/var/tmp/log{number}")
            lines = b"".join(piece for _, piece in node.pieces()).splitlines()
            node.close()
            assert list(map(int, lines))[: last + 1] == list(range(last + 1)), "what was fsynced, in order"
    live_env.restore(saved, "back")
    assert eventually(lambda: _lines(told) != fsynced, 60), "it goes on from its snapshot"


def test_going_back_in_place_keeps_the_numbers_and_a_snapshot_without_a_disk_opens_as_before(live_env: LiveEnv) -> None:
    live_env.python("back", FILES, disk=SIZE, privileged=True)
    root = Path(f"/proc/{client.describe(live_env.repo, 'back').pid}/root")
    assert eventually((root / "tmp/ready").exists, 20)
    began = _numbers(live_env, "back", "/srv/ijfs-test/sparse")
    saved = live_env.save("back").snapshot
    live_env.restore(saved, "back", replace=True)
    assert _numbers(live_env, "back", "/srv/ijfs-test/sparse") == began
    with Repository.open(live_env.repo) as repository:
        root_tree = repository.reader().tree(repository.snapshot(bytes.fromhex(saved)).root)
        assert b"inodes" in {entry.name for entry in root_tree.entries}
        export_tree(repository.reader(), repository.snapshot(bytes.fromhex(saved)).root, live_env.work / "out")
    live_env.python("plain", FILES, privileged=True)
    plain = Path(f"/proc/{client.describe(live_env.repo, 'plain').pid}/root")
    assert eventually((plain / "tmp/ready").exists, 20)
    snapshot = live_env.save("plain").snapshot
    with Repository.open(live_env.repo) as repository:
        root_tree = repository.reader().tree(repository.snapshot(bytes.fromhex(snapshot)).root)
        assert b"inodes" not in {entry.name for entry in root_tree.entries}
    assert live_env.restore(snapshot, "plain2").status == "running"


def test_one_image_is_never_attached_twice(tmp_path: Path) -> None:
    paths = SandboxPaths(tmp_path / "box")
    paths.root.mkdir()
    disk.make(paths, disk.SMALLEST)
    try:
        with disk.opened(paths) as first, disk.opened(paths) as second:
            (paths.layers / "file").write_text("one filesystem")
            assert (first / "file").read_text() == (second / "file").read_text() == "one filesystem"
            assert _attached().count(str(paths.image)) == 1
    finally:
        subprocess.run(["umount", paths.layers], check=True)
    with disk.opened(paths) as place:
        held = os.open(place / "file", os.O_RDONLY)
    assert os.read(held, 100) == b"one filesystem", "what was opened outlives the mount"
    os.close(held)


def test_what_was_fsynced_is_flushed_and_read_from_the_image_as_a_crash_leaves_it(tmp_path: Path) -> None:
    paths, crashed = SandboxPaths(tmp_path / "box"), SandboxPaths(tmp_path / "crashed")
    for one in (paths, crashed):
        one.root.mkdir()
    disk.make(paths, disk.SMALLEST)
    try:
        before = _flushes(paths.layers)
        for number in range(5):
            with (paths.layers / f"file{number}").open("w") as file:
                file.write(f"{number} fsynced")
                file.flush()
                os.fsync(file.fileno())
        assert _flushes(paths.layers) >= before + 5, "each fsync reaches the machine's own disk"
        shutil.copyfile(paths.image, crashed.image)  # with a journal that nobody has ended
    finally:
        subprocess.run(["umount", paths.layers], check=True)
    with disk.opened(crashed) as place:
        assert [(place / f"file{number}").read_text() for number in range(5)] == [f"{n} fsynced" for n in range(5)]


def _flushes(mounted: Path) -> int:
    """How often the block device below was told to flush (Documentation/block/stat.rst)."""
    device = mounted.stat().st_dev
    return int(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()[15])


HALF_DONE = Path(__file__).with_name("half_done.py").read_text()


def _root(repo: Path, name: str) -> Path:
    return Path(f"/proc/{client.describe(repo, name).pid}/root")


def _ended_right(name: str, root: Path) -> None:
    said_at = root / "tmp/said"
    assert eventually(said_at.exists, 60), name
    said: dict[str, Any] = json.loads(said_at.read_text())
    assert (said["committed"], said["fsck"], said["status"]) == (0, 0, ""), name
    assert said["log"].startswith("half done")
    assert "200 files changed" in said["log"]
    # tail looks at the number of the device, too, and a copy's overlay is another one: it prints its file once more, if
    # it comes to look before the rotation, and a copy's copy once more again.
    most = {"first": 1, "grandchild": 3}.get(name, 2)
    assert said["followed"] in ["before\n" * times + "after the rotation\n" for times in range(1, most + 1)], name
    assert (said["mapped"], said["more"]) == (128, "dirtmore"), name
    assert said["nameless"] == "only in the descriptor", name
    assert said["locked"] == ["delete", "wal"], f"{name}: another process got in between"
    assert said["rows"] == {"delete": ["first", "second"], "wal": ["first", "second"]}, name
    assert said["whole"] == ["ok", "ok"], name
    assert (said["installed"], said["flawed"]) == (0, []), name


def test_work_that_is_half_done_ends_right_in_the_original_two_forks_and_a_grandchild_elsewhere(
    live_env: LiveEnv, tmp_path: Path
) -> None:
    live_env.python("first", HALF_DONE, env={"PATIENCE_S": str(patient(20))}, disk=SIZE)
    assert eventually((_root(live_env.repo, "first") / "tmp/ready").exists, 60)
    client.fork(live_env.repo, "first", ("one", "two"))
    saved = live_env.save("one").snapshot
    elsewhere = tmp_path / "elsewhere"  # with what is stored, and without any disk of a program
    shutil.copytree(live_env.repo, elsewhere, ignore=shutil.ignore_patterns("live"))
    client.restore(elsewhere, saved, "grandchild")
    try:
        where = {"first": live_env.repo, "one": live_env.repo, "two": live_env.repo, "grandchild": elsewhere}
        roots = {name: _root(repo, name) for name, repo in where.items()}
        for root in roots.values():
            (root / "tmp/go").touch()
        for name, root in roots.items():
            _ended_right(name, root)
    finally:
        with client.connect(elsewhere, "grandchild") as keeper:
            keeper.stop(timeout_s=0)
        client.remove(elsewhere, "grandchild")
        fork_request.dismiss(elsewhere)
