"""Real ipykernels for the store benchmark: started in a sandbox, dumped by CRIU into plain directories, restored.

Called by store_tree.py, as root, in a mount namespace of its own (so that nothing mounted here outlives the process).
It uses the live layer's own steps one by one instead of `ijfs save`, because what the contestants are to store are
CRIU's raw images.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ijfs.live.criu import command as criu_command
from ijfs.live.model.paths import CONNECTION_FILE_INSIDE, LOG_INSIDE, SandboxPaths
from ijfs.live.model.records import InstanceSpec
from ijfs.live.sandbox import namespaces as ns
from ijfs.live.sandbox import rootfs
from ijfs.live.sandbox.sandbox import Sandbox, launch

# Ports inside the sandbox's own network: any will do, they clash with nothing.
CONNECTION = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "key": "bench",
    "signature_scheme": "hmac-sha256",
    **{f"{name}_port": 50001 + at for at, name in enumerate(("shell", "iopub", "stdin", "control", "hb"))},
}
CELL = "import sys; from bench.store_kernels import run_cell_here; run_cell_here(*sys.argv[1:])"
CELL_LIMIT_S = 900.0
READY_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Saved:
    """A kernel on disk: CRIU's images, and beside them the files that it wrote."""

    directory: Path

    @property
    def images(self) -> Path:
        """What the contestants store."""
        return self.directory / "images"

    @property
    def upper(self) -> Path:
        """The sandbox's writable layer, needed to restore."""
        return self.directory / "upper"


class Kernel:
    """A live kernel. Use `started` or `restored`: they end it and take its sandbox away."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def run(self, code: str) -> str:
        """Run a cell to its end; what it printed. RuntimeError when it raised."""
        network = f"/proc/{os.getpid()}/fd/{self._sandbox.network_fd}"
        connection = self._sandbox.paths.upper / CONNECTION_FILE_INSIDE.lstrip("/")
        command = ["nsenter", f"--net={network}", sys.executable, "-c", CELL, str(connection), code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a cell failed:\n{done.stdout}{done.stderr}\n{code}")
        return done.stdout

    def dump(self, into: Saved) -> float:
        """Dump into a new directory and let the kernel run on; seconds it stood still. CriuError."""
        sandbox = self._sandbox
        into.images.mkdir(parents=True)
        sandbox.paths.criu.mkdir(exist_ok=True)
        request = criu_command.Dump(
            pid=sandbox.pid,
            images=into.images,
            work=sandbox.paths.criu,
            network_fd=sandbox.network_fd,
            external_mounts=rootfs.external_inside(sandbox.volumes),
        )
        return criu_command.dump(request, lambda: _copy_tree(sandbox.paths.upper, into.upper))


@contextmanager
def started(directory: Path, python: str) -> Iterator[Kernel]:
    """A new kernel of that Python, ready for cells; `directory` is that of its sandbox."""
    spec = InstanceSpec(
        name="bench",
        kind="kernel",
        argv=(python, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": "/root", "LC_ALL": "C.UTF-8"},
        inherit_env=False,
    )
    sandbox = launch(SandboxPaths(directory), spec, directory.parent, msgspec.json.encode(CONNECTION))
    with _closing(sandbox):
        _wait_ready(sandbox)
        yield Kernel(sandbox)


@contextmanager
def restored(directory: Path, saved: Saved) -> Iterator[Kernel]:
    """A sibling: the saved kernel running again in a sandbox of its own."""
    paths = SandboxPaths(directory)
    sandbox = Sandbox(paths, ns.new_network())
    with _closing(sandbox):
        _copy_tree(saved.upper, paths.upper)
        rootfs.make_directories(paths, ())
        sandbox.mount()
        outside = rootfs.external_outside(paths, ())
        request = criu_command.Restore(saved.images, paths.criu, paths.mountpoint, sandbox.network_fd, outside)
        sandbox.own(criu_command.restore(request))
        yield Kernel(sandbox)


@contextmanager
def _closing(sandbox: Sandbox) -> Iterator[None]:
    try:
        yield
    finally:
        if sandbox.program is not None:
            sandbox.kill()
            sandbox.reap()
        sandbox.dispose()


def _wait_ready(sandbox: Sandbox) -> None:
    """Until the kernel answers; its log is in the error if it does not."""
    deadline = time.monotonic() + READY_LIMIT_S
    log = sandbox.paths.upper / LOG_INSIDE.lstrip("/")
    while time.monotonic() < deadline and sandbox.is_alive():
        try:
            Kernel(sandbox).run("pass")
        except RuntimeError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"the kernel did not start:\n{log.read_text() if log.exists() else ''}")


def _copy_tree(source: Path, target: Path) -> None:
    """Everything, devices and xattrs (the overlay's opaque marks) too; shutil knows neither."""
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--", str(source), str(target)], check=True)


def run_cell_here(connection: str, code: str) -> None:
    """The program `Kernel.run` starts inside the kernel's network: run one cell, print, fail if it raised."""
    from ijfs.jupyter.cells import run_cell

    result = run_cell(connection, code, CELL_LIMIT_S)
    print(result.stdout, end="")
    if result.status != "ok":
        sys.exit(result.error)
