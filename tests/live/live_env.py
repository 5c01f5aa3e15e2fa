"""What the tests of live instances share: a repository, instances in it, clients of kernels, and a look for leaks.

Every process that a test causes inherits a variable with the mark of its `LiveEnv`: that is how what is left over is
found, whoever its parent is by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient
from waiting import eventually, patient

from ijfs.live.checkpoint.restore import KEPT_LOG
from ijfs.live.client import api as client
from ijfs.live.criu import command as criu_command
from ijfs.live.errors import CriuMissingError
from ijfs.live.model.records import InstanceInfo, InstanceSpec, SaveResult
from ijfs.live.process import fork_request, procfs
from ijfs_engine import IjfsError, Repository

MARK = "IJFS_TEST_ENV"
KERNEL = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")


def why_not() -> str | None:
    """Why live tests cannot run here; None when they can."""
    if os.geteuid() != 0:
        return "needs root (namespaces, mounts, CRIU)"
    try:
        found = criu_command.find()
    except CriuMissingError as error:
        return str(error)
    complaint = criu_command.check(found)
    return f"{found} does not pass `criu check`: {complaint}" if complaint else None


class Kernel:
    """A client of one kernel instance."""

    def __init__(self, info: InstanceInfo) -> None:
        self.info = info
        self.client = BlockingKernelClient()
        self.client.load_connection_info(info.connection)
        self.client.start_channels()
        self._wait()

    def _wait(self) -> None:
        """A heartbeat later than a second is death to jupyter_client; with eight kernels coming back on two cores it is
        not to us."""
        deadline = time.monotonic() + patient(60)
        while True:
            try:
                return self.client.wait_for_ready(timeout=60)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise

    def run(self, code: str, timeout: float = 60.0) -> str:
        """Run a cell; what it printed and its value, an error raised as AssertionError."""
        parts: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                parts.append(content["text"])
            elif message["msg_type"] == "execute_result":
                parts.append(content["data"]["text/plain"])

        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=hook, allow_stdin=False)
        content = reply["content"]
        if content["status"] != "ok":
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(content.get("traceback", [])))
            raise AssertionError(f"in {self.info.name}: {content.get('ename')}: {content.get('evalue')}\n{trace}")
        return "".join(parts).strip()

    def close(self) -> None:
        """Leave the kernel."""
        self.client.stop_channels()


class LiveEnv:
    """A repository and its instances, all gone at the end."""

    def __init__(self, directory: Path) -> None:
        self.repo = directory / "repo"
        self.work = directory / "work"
        self.work.mkdir()
        self.mark = uuid.uuid4().hex
        os.environ[MARK] = self.mark
        Repository.init(self.repo).close()
        self._kernels: list[Kernel] = []

    # -- instances

    def command(self, name: str, script: str, **spec: Any) -> InstanceInfo:
        """A shell script as an instance."""
        spec = {"cwd": "/", **spec}
        return client.start(self.repo, InstanceSpec(name=name, argv=("sh", "-c", script), **spec))

    def python(self, name: str, script: str, **spec: Any) -> InstanceInfo:
        """A Python script as an instance."""
        spec = {"cwd": "/", **spec}
        return client.start(self.repo, InstanceSpec(name=name, argv=(sys.executable, "-c", script), **spec))

    def kernel(self, name: str, **spec: Any) -> Kernel:
        """A real ipykernel as an instance, with a client."""
        spec = {"cwd": "/", **spec}
        info = client.start(
            self.repo, InstanceSpec(name=name, kind="kernel", argv=KERNEL, kernel_name="python3", **spec)
        )
        return self.talk(info)

    def talk(self, info: InstanceInfo) -> Kernel:
        """A client of a kernel instance."""
        kernel = Kernel(info)
        self._kernels.append(kernel)
        return kernel

    def save(self, name: str, message: str = "", **options: Any) -> SaveResult:
        """Save an instance."""
        with client.connect(self.repo, name) as keeper:
            return keeper.save(message, **options)

    def restore(self, snapshot: str, name: str, **options: Any) -> InstanceInfo:
        """Restore a snapshot."""
        return client.restore(self.repo, snapshot, name, **options)

    def stop(self, name: str, *, timeout_s: float = 2.0) -> InstanceInfo:
        """Stop an instance."""
        with client.connect(self.repo, name) as keeper:
            return keeper.stop(timeout_s=timeout_s)

    def upper(self, name: str) -> Path:
        """An instance's writable layer."""
        return Path(client.describe(self.repo, name).log).parents[2]

    def exec(self, name: str, *argv: str) -> int:
        """Run a command in an instance."""
        return client.exec_command(self.repo, name, argv)

    # -- the end

    def processes(self) -> list[int]:
        """Every process that carries the environment's mark, but this one."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                        found.append(int(entry))
        return found

    def close(self) -> list[str]:
        """End everything; what had to be ended by force, because its own end did not take it along."""
        for kernel in self._kernels:
            kernel.close()
        for info in client.list_instances(self.repo):
            with contextlib.suppress(IjfsError):
                self.stop(info.name, timeout_s=0)
            with contextlib.suppress(IjfsError):
                client.remove(self.repo, info.name)
        fork_request.dismiss(self.repo)
        eventually(lambda: not self.processes(), 5)
        left = [f"process {pid}: {command_line(pid)}" for pid in self.processes()]
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        live = self.repo / "live"
        left += [f"directory {path}" for path in (live.iterdir() if live.is_dir() else ()) if path.name != KEPT_LOG]
        return left


def is_gone(pid: int | None) -> bool:
    """Whether a process has ended; a zombie that its parent did not reap yet counts as gone. One of which only the
    first thread has ended does not: the others hold its files and locks (those of a killed keeper, for some ms)."""
    return pid is None or not procfs.is_alive(procfs.identify(pid))


def command_line(pid: int) -> str:
    """A process's command line, for messages."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "(gone)"


@contextlib.contextmanager
def open_env(directory: Path) -> Iterator[LiveEnv]:
    """An environment for a with statement; fails when something leaked, also when the body failed."""
    live_env = LiveEnv(directory)
    try:
        yield live_env
    finally:
        left = live_env.close()
        os.environ.pop(MARK, None)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        left += [f"mount {line}" for line in mounts if f" {directory}/" in line]
        assert not left, f"left behind: {left}"
