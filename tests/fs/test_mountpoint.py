"""Mounting and unmounting from outside: the daemon's life, and what bad luck and bad input get."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from trees import save
from waiting import eventually

from ijfs.fs import mountinfo
from ijfs.fs import mountpoint as mounting
from ijfs.fs.errors import MountBusyError, MountError, MountPointError, NotMountedError
from ijfs_engine import NoRepositoryError, Repository

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one file in one snapshot."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"saved")
    with Repository.init(tmp_path / "repo") as opened:
        save(opened, tmp_path / "tree")
    return tmp_path / "repo"


@pytest.fixture
def mounted(repository: Path, mountpoint: Path) -> Iterator[mounting.MountedRepository]:
    """The repository, mounted; whatever the test does to it, nothing is left."""
    found = mounting.mount(repository, mountpoint)
    yield found
    if mountinfo.find_mount(mountpoint) is not None:
        mounting.umount(mountpoint, lazy=True)
    if found.pid is not None and psutil.pid_exists(found.pid):
        assert eventually(lambda: not runs(found.pid))


def runs(pid: int | None) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def saved_file(mounted: mounting.MountedRepository) -> Path:
    return mounted.mountpoint / "branches" / "main" / "files" / "file"


def its_helpers(mounted: mounting.MountedRepository) -> list[psutil.Process]:
    """The fusermount3 that stays to clean up after the daemon."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline", "status"])
        if process.info["name"] == "fusermount3" and str(mounted.mountpoint) in (process.info["cmdline"] or [])
    ]


def kill_outright(mounted: mounting.MountedRepository) -> None:
    """SIGKILL the daemon and the fusermount3 that would clean up after it, as a crash of the machine's users does."""
    assert mounted.pid is not None
    for process in its_helpers(mounted):
        process.kill()
        assert eventually(lambda process=process: not runs(process.pid))
    os.kill(mounted.pid, signal.SIGKILL)
    assert eventually(lambda: is_disconnected(mounted.mountpoint))


def is_disconnected(mountpoint: Path) -> bool:
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def test_mount_answers_at_once_and_umount_leaves_nothing(mounted: mounting.MountedRepository) -> None:
    assert saved_file(mounted).read_bytes() == b"saved"
    assert mounting.mounts_of(mounted.repository) == [mounted]
    assert mounting.mounts_of(mounted.repository.parent) == []
    mounting.umount(mounted.mountpoint)
    assert not runs(mounted.pid)
    assert mounting.mounts_of(mounted.repository) == []
    assert os.listdir(mounted.mountpoint) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(mounted: mounting.MountedRepository, number: signal.Signals) -> None:
    assert mounted.pid is not None
    os.kill(mounted.pid, number)
    assert eventually(lambda: not runs(mounted.pid))
    assert mountinfo.find_mount(mounted.mountpoint) is None


def test_unmounting_by_other_means_ends_the_daemon(mounted: mounting.MountedRepository) -> None:
    subprocess.run(["umount", mounted.mountpoint], check=True)
    assert eventually(lambda: not runs(mounted.pid))


def test_a_killed_daemon_takes_its_mount_along(mounted: mounting.MountedRepository) -> None:
    assert mounted.pid is not None
    os.kill(mounted.pid, signal.SIGKILL)
    assert eventually(lambda: not runs(mounted.pid))
    assert eventually(lambda: mountinfo.find_mount(mounted.mountpoint) is None), (
        its_helpers(mounted),
        is_disconnected(mounted.mountpoint),
    )
    again = mounting.mount(mounted.repository, mounted.mountpoint)
    assert saved_file(again).read_bytes() == b"saved"
    mounting.umount(mounted.mountpoint)


def test_a_dead_mount_is_cleaned_away_before_mounting_again(mounted: mounting.MountedRepository) -> None:
    kill_outright(mounted)
    assert [found.pid for found in mounting.mounts_of(mounted.repository)] == [None]
    again = mounting.mount(mounted.repository, mounted.mountpoint)
    assert saved_file(again).read_bytes() == b"saved"
    mounting.umount(mounted.mountpoint)


def test_umount_takes_a_dead_mount_away(mounted: mounting.MountedRepository) -> None:
    kill_outright(mounted)
    mounting.umount(mounted.mountpoint)
    assert mountinfo.find_mount(mounted.mountpoint) is None


def test_a_busy_mount_is_refused_with_who_uses_it_and_goes_lazily(mounted: mounting.MountedRepository) -> None:
    user = subprocess.Popen(["sleep", "60"], cwd=saved_file(mounted).parent)
    try:
        with pytest.raises(MountBusyError, match=rf"in use by sleep \({user.pid}\)") as refusal:
            mounting.umount(mounted.mountpoint)
        assert "--lazy" in (refusal.value.hint or "")
        assert saved_file(mounted).read_bytes() == b"saved"
        mounting.umount(mounted.mountpoint, lazy=True)
        assert mountinfo.find_mount(mounted.mountpoint) is None
        assert os.listdir(f"/proc/{user.pid}/cwd") == ["file"]
    finally:
        user.kill()
        user.wait()
    assert eventually(lambda: not runs(mounted.pid))


def test_umount_ends_the_daemon_also_where_another_mount_namespace_has_a_copy(
    mounted: mounting.MountedRepository,
) -> None:
    other = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo there; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        mounting.umount(mounted.mountpoint)
        assert not runs(mounted.pid)
    finally:
        other.kill()
        other.communicate()


def test_two_mounts_of_one_repository_stand_side_by_side(mounted: mounting.MountedRepository, tmp_path: Path) -> None:
    second = tmp_path / "second, with a comma"
    second.mkdir()
    other = mounting.mount(mounted.repository, second)
    try:
        assert mounting.mounts_of(mounted.repository) == [mounted, other]
    finally:
        mounting.umount(second)
    assert saved_file(mounted).read_bytes() == b"saved"


def test_a_repository_path_with_a_comma_and_a_blank_is_shown_as_it_is(tmp_path: Path, mountpoint: Path) -> None:
    with Repository.init(tmp_path / "a, b\\c"):
        pass
    mounting.mount(tmp_path / "a, b\\c", mountpoint)
    assert [found.mountpoint for found in mounting.mounts_of(tmp_path / "a, b\\c")] == [mountpoint]
    mounting.umount(mountpoint)


def test_mounting_twice_at_one_place_is_refused(mounted: mounting.MountedRepository) -> None:
    with pytest.raises(MountPointError, match="already shows the repository"):
        mounting.mount(mounted.repository, mounted.mountpoint)
    assert saved_file(mounted).read_bytes() == b"saved"


def test_places_that_cannot_be_mounted_on_are_named(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    for place, words in {
        tmp_path / "absent": "does not exist",
        tmp_path / "a file": "is not a directory",
        tmp_path: "is not empty",
        Path("/proc"): "is not empty",
    }.items():
        with pytest.raises(MountPointError, match=words):
            mounting.mount(repository, place)


def test_what_is_no_repository_is_refused_by_that_name(mountpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(NoRepositoryError):
        mounting.mount(tmp_path / "nothing here", mountpoint)


def test_a_machine_without_fusermount3_is_told_what_to_install(
    repository: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MountError, match="fusermount3 is missing") as refusal:
        mounting.mount(repository, mountpoint)
    assert "fuse3" in (refusal.value.hint or "")


def test_what_is_not_ours_is_not_unmounted(tmp_path: Path) -> None:
    for place in (tmp_path, Path("/proc"), tmp_path / "absent"):
        with pytest.raises(NotMountedError):
            mounting.umount(place)


def test_the_foreground_serves_until_it_is_interrupted(repository: Path, mountpoint: Path) -> None:
    program = (
        "import sys, trio; from pathlib import Path; from ijfs.fs import daemon;"
        "trio.run(lambda: daemon.serve(*map(Path, sys.argv[1:]), ready=lambda: print('ready', flush=True)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, repository, mountpoint], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        while "ready" not in (line := process.stdout.readline()):
            assert line, "it ended"
        assert (mountpoint / "branches" / "main" / "files" / "file").read_bytes() == b"saved"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0
    assert mountinfo.find_mount(mountpoint) is None


SERVE = """
import sys
from pathlib import Path
import trio
from ijfs.fs import daemon
daemon.REMOVED_S = 0.1
trio.run(lambda: daemon.serve(Path(sys.argv[1]), Path(sys.argv[2]), ready=lambda: print("ready", flush=True)))
"""


def test_a_mount_that_nobody_reads_lets_go_of_packs_that_gc_removed(
    repository: Path, mountpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "file").write_bytes(os.urandom(300_000))
    with Repository.open(repository) as opened:
        gone = save(opened, tmp_path / "tree", branch="gone")
        command = [sys.executable, "-c", SERVE, str(repository), str(mountpoint)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
            try:
                assert daemon.stdout is not None
                assert daemon.stdout.readline() == "ready\n"
                assert len((mountpoint / "branches" / "gone" / "files" / "file").read_bytes()) == 300_000
                assert any(name.endswith(".pack") for name in open_files(daemon.pid))
                opened.remove(gone.id)
                opened.gc()
                assert eventually(lambda: not any(name.endswith(".pack (deleted)") for name in open_files(daemon.pid)))
                assert opened.gc().held == ()
            finally:
                daemon.send_signal(signal.SIGTERM)


def open_files(pid: int) -> list[str]:
    """What a process has open, by its links in /proc."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(descriptor))
    return links
