"""A save and a restore of a throw-away program, for `ijfs doctor`: what kernels, containers and CRIUs allow is tried.

    python -m ijfs.live.machine.trial DIRECTORY        (run by `attempt`; says in JSON what came of it)

The program is an init with a `sleep`, in a sandbox as all programs are, with a TCP connection to itself. So it tries
what was seen to fail while `criu check` passed: files mapped from an overlay on another overlay, socket options that a
CRIU is too old for, capabilities that only a restore needs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ijfs.live.criu import command as criu_command
from ijfs.live.model.paths import SandboxPaths
from ijfs.live.sandbox import init, proc_sys, rootfs
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox.cleanup import sweep_directory
from ijfs.live.sandbox.lower import HOST, Lower
from ijfs.live.sandbox.sandbox import Sandbox, find_init
from ijfs.live.sandbox.volumes import is_layered, kind_at
from ijfs_engine.errors import IjfsError

LIMIT_S = 60.0
"""Both take half a second; a restore that lacks a capability may hang."""

CRIU_LIMIT_S = "20"

SLEEP_S = "300"


class Outcome(msgspec.Struct, frozen=True):
    """What came of it: nothing went wrong, or in which step ("start", "save", "restore") what did."""

    seconds: float = 0.0
    step: str = ""
    complaint: str = ""
    hint: str = ""


def attempt(place: Path) -> Outcome:
    """Try it in a directory of the repository's filesystem; nothing is left there, or anywhere."""
    directory = Path(tempfile.mkdtemp(dir=place, prefix=".ijfs-doctor-"))
    command = [sys.executable, "-P", "-m", "ijfs.live.machine.trial", str(directory)]
    environment = {**os.environ, "IJFS_CRIU_LIMIT_S": CRIU_LIMIT_S}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=LIMIT_S, check=False)
        return msgspec.json.decode(done.stdout, type=Outcome)
    except subprocess.TimeoutExpired:
        return Outcome(LIMIT_S, "restore", f"it did not end within {LIMIT_S:.0f} s")
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
        return Outcome(0.0, "start", said[-1])
    finally:
        sweep_directory(directory)


def main() -> int:
    """The helper program."""
    directory = Path(sys.argv[1])
    began = time.monotonic()
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    trial = _Trial(directory)
    try:
        trial.run()
        outcome = Outcome(time.monotonic() - began)
    except IjfsError as error:
        outcome = Outcome(time.monotonic() - began, trial.step, str(error), error.hint or "")
    except OSError as error:
        outcome = Outcome(time.monotonic() - began, trial.step, f"{error}")
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
    return 0


class _Trial:
    """One trial; `step` is what it is at."""

    def __init__(self, directory: Path) -> None:
        self.step = "start"
        self._directory = directory

    def run(self) -> None:
        ns.private_mounts()
        proc_sys.make_writable()
        lower = Lower(_small_root(self._directory / "lower")) if is_layered(kind_at(Path("/"))) else HOST
        images = self._directory / "images"
        images.mkdir()
        with self._sandbox("box-1", lower) as sandbox:
            self._start(sandbox)
            self.step = "save"
            criu_command.dump(
                criu_command.Dump(
                    sandbox.pid,
                    images,
                    sandbox.paths.criu,
                    sandbox.network_fd,
                    external_mounts=rootfs.external_inside(()),
                )
            )
        with self._sandbox("box-2", lower) as sandbox:
            self.step = "restore"
            sandbox.paths.program_log.touch(0o644)  # what it writes to; it has written nothing
            sandbox.mount()
            outside = rootfs.external_outside(sandbox.paths, ())
            request = criu_command.Restore(
                images, sandbox.paths.criu, sandbox.paths.mountpoint, sandbox.network_fd, outside
            )
            sandbox.own(criu_command.restore(request))

    @contextlib.contextmanager
    def _sandbox(self, name: str, lower: Lower) -> Iterator[Sandbox]:
        sandbox = Sandbox(SandboxPaths(self._directory / name), ns.new_network(), lower=lower)
        try:
            rootfs.prepare_upper(sandbox.paths, lower=lower.root)
            yield sandbox
        finally:
            if sandbox.program is not None:
                sandbox.kill()
                sandbox.reap()
            sandbox.dispose()

    def _start(self, sandbox: Sandbox) -> None:
        command = [find_init(sandbox.lower.root, sandbox.paths), "--", "sleep", SLEEP_S]
        sandbox.mount()
        with _connection(sandbox.network_fd) as sockets:
            environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
            kept = [sock.fileno() for sock in sockets]
            pid = init.start(
                sandbox.paths, (), sandbox.network_fd, command, environment, "/", io_uring=False, inherited=kept
            )
        sandbox.own(pid)


@contextlib.contextmanager
def _connection(network_fd: int) -> Iterator[list[socket.socket]]:
    """A listening socket and both ends of a connection to it, in that network."""
    with contextlib.ExitStack() as stack, ns.in_network(network_fd):
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = stack.enter_context(socket.create_connection(listening.getsockname()))
        theirs = stack.enter_context(listening.accept()[0])
        yield [listening, ours, theirs]


def _small_root(root: Path) -> Path:
    """The least root that an init and a `sleep` run on: what they link, where they look for it."""
    for program in (*("tini", "docker-init"), "sleep"):
        path = shutil.which(program)
        if path is not None:
            _copy(Path(os.path.realpath(path)), root / "usr/bin" / program)
            for library in _libraries(path):
                _copy(Path(library), root / library.lstrip("/"))
    for name in ("dev", "proc", "sys", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    return root


def _libraries(program: str) -> list[str]:
    """The paths that ldd names; none for a static program."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return [word for line in done.stdout.splitlines() for word in line.split() if word.startswith("/")]


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


if __name__ == "__main__":
    sys.exit(main())
