"""`ijfs mount` and `ijfs umount` on a real FUSE mount."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import COMMAND, Ijfs
from json_page import check
from waiting import eventually

pytestmark = pytest.mark.fuse


@pytest.fixture
def mountpoint(ijfs: Ijfs, repo: Path, tmp_path: Path) -> Iterator[Path]:
    """An empty directory beside a repository with one snapshot; nothing stays mounted on it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "hello.txt").write_text("hello\n")
    assert ijfs("import", tmp_path / "work", "-m", "one").code == 0
    place = tmp_path / "mnt"
    place.mkdir()
    yield place
    if os.path.ismount(place):
        subprocess.run(["fusermount3", "-uz", place], check=False)


def test_a_mount_serves_files_until_it_is_unmounted(ijfs: Ijfs, run_ijfs: Ijfs, mountpoint: Path, repo: Path) -> None:
    mounted = run_ijfs("mount", mountpoint, "--json").json
    check(mounted, "mount")
    assert (mountpoint / "branches" / "main" / "files" / "hello.txt").read_text() == "hello\n"
    listed = ijfs("umount", "--json").json
    check(listed, "umount")
    assert [m["mountpoint"] for m in listed["mounts"]] == [str(mountpoint)]
    again = ijfs("mount", mountpoint)
    assert again.code == 2
    assert "umount" in again.err
    check(ijfs("umount", mountpoint, "--json").json, "umount")
    assert not os.path.ismount(mountpoint)
    assert not Path(f"/proc/{mounted['pid']}/exe").exists(), "its process has ended (a zombie has no program)"
    assert ijfs("umount").out == "not mounted anywhere\n"


def test_in_the_foreground_ctrl_c_takes_it_away(mountpoint: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "mount", "--foreground", str(mountpoint)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert eventually(lambda: os.path.ismount(mountpoint), 30)
        assert (mountpoint / "branches" / "main" / "files" / "hello.txt").read_text() == "hello\n"
    finally:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert process.returncode in (0, 130)
    assert not os.path.ismount(mountpoint)


@pytest.mark.parametrize("where", ["absent", "full"])
def test_a_place_that_cannot_be_mounted_on_is_refused(ijfs: Ijfs, repo: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    result = ijfs("mount", tmp_path / where)
    assert result.code == 2
    assert result.err.startswith("ijfs: ")


def test_umount_of_what_is_not_mounted_says_so(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    result = ijfs("umount", tmp_path)
    assert result.code == 1
    assert "no ijfs filesystem" in result.err


@pytest.mark.root
def test_a_repository_that_is_mounted_read_only_can_be_looked_at_and_mounted(
    run_ijfs: Ijfs, mountpoint: Path, repo: Path, tmp_path: Path
) -> None:
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    subprocess.run(["mount", "--bind", repo, frozen], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", frozen], check=True)
        for argv in (["log"], ["tree"], ["show"], ["du"], ["stats"], ["fsck"], ["branch"], ["diff", "main", "main"]):
            assert run_ijfs("-r", frozen, *argv).code == 0, argv
        assert run_ijfs("-r", frozen, "cat", "main:files/hello.txt").out == "hello\n"
        assert run_ijfs("-r", frozen, "export", "main:files", tmp_path / "out").code == 0
        assert run_ijfs("-r", frozen, "mount", mountpoint).code == 0
        try:
            assert (mountpoint / "branches" / "main" / "files" / "hello.txt").read_text() == "hello\n"
        finally:
            assert run_ijfs("umount", mountpoint).code == 0
        for argv in (["tag", "t", "main"], ["gc"], ["rm", "main"], ["import", str(tmp_path / "work")]):
            refused = run_ijfs("-r", frozen, *argv)
            assert (refused.code, "can only be read" in refused.err) == (1, True), argv
        assert run_ijfs("-r", frozen, "run", "--", "true").code == 1
    finally:
        subprocess.run(["umount", frozen], check=True)


def test_rm_names_who_reads_what_it_removes_in_a_mount(ijfs: Ijfs, run_ijfs: Ijfs, mountpoint: Path) -> None:
    assert run_ijfs("mount", mountpoint).code == 0
    ident = ijfs("log", "--json").json["snapshots"][0]["id"]
    with (mountpoint / "branches" / "main" / "files" / "hello.txt").open() as held:
        for argv in (["--dry-run"], []):
            answer = ijfs("rm", *argv, "main", "--json").json
            check(answer, "rm")
            me = f"{Path('/proc/self/comm').read_text().strip()} ({os.getpid()})"
            assert answer["open"] == [{"snapshot": ident, "mountpoint": str(mountpoint), "by": me}]
        assert held.read() == "hello\n"
        ijfs("branch", "main", ident)
        assert f"is open in the mount {mountpoint}, by " in ijfs("rm", "main").out
    ijfs("branch", "main", ident)
    assert ijfs("rm", "main", "--json").json["open"] == []
