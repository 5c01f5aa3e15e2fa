"""A Jupyter home of its own with a sandboxed kernel spec and a repository, and what the kernel tests do with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from waiting import patient

from ijfs.jupyter import kernelspec
from ijfs.live.client import api as client
from ijfs.live.process import fork_request

KERNEL = "ijfs-python3"
ANSWER_TIMEOUT_S = patient(60)
"""Two cores are shared with whatever else runs: a limit for what should take one or two seconds."""


class JupyterEnv:
    """Directories under `root`, and the environment that makes Jupyter and ijfs use them."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.repo = root / "repo"
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(root / name.lower()))
        patch.setenv("IJFS_REPO", str(self.repo))
        patch.setenv(fork_request.SETTING, "0")  # tests look whether an instance left any process behind
        patch.setenv("PYTHONWARNINGS", "ignore")  # Jupyter's own programs, run as they are
        kernelspec.install()

    def instances(self) -> list[str]:
        """The names of the instances that run."""
        return [info.name for info in client.list_instances(self.repo) if info.status == "running"]

    def the_instance(self) -> str:
        """The one instance there is."""
        (name,) = self.instances()
        return name

    def save(self, name: str, message: str = "") -> str:
        """Save from outside, as `ijfs save` does; the snapshot's id."""
        with client.connect(self.repo, name) as keeper:
            return keeper.save(message).snapshot

    def stop(self, name: str) -> None:
        """End an instance, as `ijfs stop` does."""
        with client.connect(self.repo, name) as keeper:
            keeper.stop(timeout_s=1)

    def close(self) -> None:
        """End what a failed test left, then see that nothing is there."""
        left = self.instances()
        for name in left:
            self.stop(name)
        assert left == []
        assert self.processes() == []
        assert str(self.root) not in Path("/proc/self/mountinfo").read_text()

    def processes(self) -> list[str]:
        """Command lines of processes that belong to this environment's repository."""
        _, alive = psutil.wait_procs(list(self._related()), timeout=5)
        return [" ".join(process.cmdline()) for process in alive]

    def _related(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            environment = process.info["environ"] or {}
            named = any(str(self.repo) in word for word in process.info["cmdline"] or [])
            if process.pid != os.getpid() and (named or environment.get("IJFS_REPO") == str(self.repo)):
                found.append(process)
        return found


class Cells:
    """A blocking client of a kernel, from a manager that has started it."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client: BlockingKernelClient = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=ANSWER_TIMEOUT_S)

    def __call__(self, code: str) -> str:
        """Run a cell; what it printed, or the name of the exception it raised (which aborts no cell that comes next:
        ipykernel would for a moment after its answer)."""
        printed: list[str] = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])
            if message["msg_type"] == "display_data":
                printed.append(message["content"]["data"]["text/plain"] + "\n")

        options: dict[str, Any] = {"allow_stdin": False, "stop_on_error": False}
        reply = self.client.execute_interactive(code, timeout=ANSWER_TIMEOUT_S, output_hook=take, **options)
        return "".join(printed).strip() if reply["content"]["status"] == "ok" else str(reply["content"]["ename"])

    def interrupted(self, code: str) -> str:
        """Begin a cell, interrupt the kernel once it is busy with it; how the cell ended, as __call__ has it."""
        request = self.client.execute(code, stop_on_error=False)
        while (message := self.client.get_iopub_msg(timeout=ANSWER_TIMEOUT_S))["msg_type"] != "execute_input":
            assert message["msg_type"] != "error"
        self.manager.interrupt_kernel()
        while (reply := self.client.get_shell_msg(timeout=ANSWER_TIMEOUT_S))["parent_header"]["msg_id"] != request:
            pass
        return str(reply["content"].get("ename", reply["content"]["status"]))

    def close(self, *, now: bool = True) -> None:
        """Disconnect, and shut the kernel down as a front end does."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=now)
