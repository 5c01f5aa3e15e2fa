"""Real dumps by the real CRIU, by stream and into a directory, into a repository, out of its mount, and back to life.

One small program is dumped while it runs on; what CRIU restores from the mount has to be that program. The live layer's
sandboxes are not used here: this is the ground they stand on.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from waiting import eventually

from ijfs.fs import mountpoint as mounting
from ijfs.live.criu import command as criu_command
from ijfs.live.criu.image_stream import StreamCapture, StreamError
from ijfs_engine import Repository
from ijfs_engine.write.arena import Arena, Segments

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]

MIB = 1 << 20
MEGABYTES = 40

# Holds random bytes and keeps saying which they are, always in the same place of a file whose size stays the same.
PROGRAM = """
import hashlib, os, sys, time
data = os.urandom(int(sys.argv[1]) << 20)
with open(sys.argv[2], "wb", buffering=0) as out:
    count = 0
    while True:
        count += 1
        os.pwrite(out.fileno(), b"%20d %s" % (count, hashlib.sha256(data).hexdigest().encode()), 0)
        time.sleep(0.005)
"""

# CRIU runs it at every stage; at post-dump the program is still frozen. It asks, and passes the answer on.
ACTION_SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
echo frozen > "$IJFS_TEST_ASK" && read -r answer < "$IJFS_TEST_ANSWER" && [ "$answer" = go ]
"""


class Program:
    """The program, running, and what it says."""

    def __init__(self, directory: Path) -> None:
        self.output = directory / "program.out"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(MEGABYTES), str(self.output)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self.process.pid
        assert eventually(lambda: self.output.exists() and self.count() > 0, 20)
        self.data = self.said()[1]

    def said(self) -> tuple[int, str]:
        count, _, digest = self.output.read_text().strip().partition(" ")
        return int(count or 0), digest

    def count(self) -> int:
        return self.said()[0]

    def assert_runs_on(self) -> None:
        """It counts, and its memory is what it was."""
        before = self.count()
        assert eventually(lambda: self.count() > before + 2, 20)
        assert self.said()[1] == self.data

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def program(live_machine: None, tmp_path: Path) -> Iterator[Program]:
    running = Program(tmp_path)
    yield running
    running.kill()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place to mount a repository; nothing stays there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = tmp_path / "mnt"
    place.mkdir()
    yield place
    if os.path.ismount(place):
        mounting.umount(place, lazy=True)


def run_criu(*arguments: str | Path, work: Path, env: Mapping[str, str] | None = None) -> None:
    """CRIU with the log in `work`; fails the test with its last words."""
    command = [criu_command.find(), *arguments, "-W", work, "-o", "criu.log", "-v2"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, done.stderr + (work / "criu.log").read_text()[-2000:]


def into_a_directory(program: Program, work: Path, arena: Arena) -> Mapping[str, Path]:
    images = work / "images"
    images.mkdir()
    run_criu("dump", "-t", str(program.pid), "-D", images, "--leave-running", work=work)
    return {path.name: path for path in images.iterdir()}


def into_the_stream(program: Program, work: Path, arena: Arena) -> Mapping[str, Segments]:
    with tempfile.TemporaryDirectory() as short, StreamCapture(Path(short), arena) as capture:
        stream_dump(program, work, capture, while_frozen=capture.drain)
        return capture.finish()


def stream_dump(program: Program, work: Path, capture: StreamCapture, while_frozen: Callable[[], None]) -> None:
    """`criu dump --stream`, with `while_frozen` called at post-dump; when it raises, the dump is given up."""
    script, ask, answer = work / "action", work / "ask", work / "answer"
    script.write_text(ACTION_SCRIPT)
    script.chmod(0o700)
    os.mkfifo(ask)
    os.mkfifo(answer)
    asked = os.open(ask, os.O_RDWR)

    def serve() -> None:
        if os.read(asked, 100) == b"frozen\n":
            verdict = "go"
            try:
                while_frozen()
            except StreamError:
                verdict = "stop"
            answer.write_text(verdict + "\n")

    server = threading.Thread(target=serve)
    server.start()
    try:
        run_criu(
            "dump", "-t", str(program.pid), "-D", capture.directory, "--leave-running", "--stream",
            "--action-script", script,
            work=work,
            env={"IJFS_TEST_ASK": str(ask), "IJFS_TEST_ANSWER": str(answer)},
        )  # fmt: skip
    finally:
        os.write(asked, b"over\n")
        server.join()
        os.close(asked)


WAYS = {"directory": into_a_directory, "stream": into_the_stream}


@pytest.mark.parametrize("way", WAYS)
def test_a_dump_comes_back_from_the_mount_as_the_program_it_was(
    program: Program, tmp_path: Path, mount: Path, way: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    files = WAYS[way](program, work, Arena(2 * MEGABYTES * MIB))
    program.assert_runs_on()
    program.kill()
    with Repository.init(tmp_path / "repo") as opened, opened.begin() as writer:
        writer.add_images("images", files)
        writer.commit(branch="main")
    assert {"inventory.img", f"core-{program.pid}.img", f"pagemap-{program.pid}.img", "pages-1.img"} <= files.keys()
    mounting.mount(tmp_path / "repo", mount)
    images = mount / "branches" / "main" / "images"
    assert sorted(os.listdir(images)) == sorted(files)
    for name, dumped in files.items():
        wanted = dumped.read_bytes() if isinstance(dumped, Path) else b"".join(dumped)
        assert (images / name).read_bytes() == wanted, name
        if isinstance(dumped, Path):
            subprocess.run(["cmp", dumped, images / name], check=True)
    with restored(images, tmp_path):
        program.assert_runs_on()
    mounting.umount(mount)


@contextlib.contextmanager
def restored(images: Path, tmp_path: Path) -> Iterator[int]:
    """`criu restore` of the images, as a child of a CRIU that waits for it; killed afterwards."""
    work = tmp_path / "restore"
    work.mkdir()
    pid_file = work / "pid"
    command = [criu_command.find(), "restore", "-D", images, "-W", work, "-o", "criu.log", "-v2", "--pidfile", pid_file]
    waiting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = 0
    try:
        assert eventually(lambda: (pid_file.exists() and pid_file.read_text()) or waiting.poll() is not None, 20)
        assert waiting.poll() is None, (work / "criu.log").read_text()[-2000:]
        pid = int(pid_file.read_text())
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or waiting.pid, 9)
        waiting.wait(20)


def test_an_arena_too_small_fails_the_dump_and_the_program_runs_on(program: Program, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"No space|Broken pipe|page-xfer"):
        into_the_stream(program, tmp_path, Arena(MEGABYTES * MIB // 2))
    program.assert_runs_on()


def test_a_stream_given_up_while_frozen_leaves_the_program_running(program: Program, tmp_path: Path) -> None:
    def give_up() -> None:
        raise StreamError("not today")

    with (
        tempfile.TemporaryDirectory() as short,
        StreamCapture(Path(short), Arena(2 * MEGABYTES * MIB)) as capture,
        pytest.raises(AssertionError),
    ):
        stream_dump(program, tmp_path, capture, give_up)
    program.assert_runs_on()
