"""Which instance a kernel of this server is, and which notebook it belongs to. For api.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ijfs.jupyter.provisioner import IjfsProvisioner
from ijfs.live.client.api import InstanceInfo
from ijfs_engine.errors import ConflictError, IjfsError


class UnknownKernelError(IjfsError):
    """This server has no kernel of that id."""

    default_hint = "open the notebook again"


class NotIjfsError(ConflictError):
    """The kernel does not run in a sandbox of ijfs."""

    default_hint = "choose a kernel whose name ends in (ijfs); `ijfs kernel install` makes one"


@dataclass(frozen=True)
class Target:
    """A kernel of this server that is an instance of ijfs."""

    kernel: str
    repo: Path
    instance: str
    attached: bool
    manager: Any

    def speak_with(self, info: InstanceInfo) -> None:
        """The program was replaced by another's snapshot, perhaps: speak with it by its key. (Channels of a browser
        that is connected take it up when they connect again.)"""
        if info.connection is not None:
            self.manager.session.key = info.connection["key"].encode()


class Kernels:
    """The kernels and sessions of a Jupyter server."""

    def __init__(self, app: Any) -> None:
        self._app = app

    @property
    def root(self) -> Path:
        """The directory that notebooks' paths start from."""
        return Path(self._app.contents_manager.root_dir)

    def target(self, kernel: str) -> Target:
        """The instance that a kernel is. UnknownKernelError, NotIjfsError."""
        if kernel not in self._app.kernel_manager:
            raise UnknownKernelError(f"this server has no kernel {kernel!r}")
        manager = self._app.kernel_manager.get_kernel(kernel)
        provisioner = getattr(manager, "provisioner", None)
        if not isinstance(provisioner, IjfsProvisioner) or not provisioner.instance:
            raise NotIjfsError("this kernel does not run in ijfs")
        return Target(kernel, provisioner.repository, provisioner.instance, bool(provisioner.attach), manager)

    def of_instances(self, repo: Path) -> dict[str, str]:
        """The kernel ids of this server's instances of a repository, by the instances' names."""
        found = {}
        for kernel in self._app.kernel_manager.list_kernel_ids():
            try:
                target = self.target(kernel)
            except IjfsError:
                continue
            if target.repo == repo:
                found[target.instance] = kernel
        return found

    async def paths(self) -> dict[str, str]:
        """The notebook of each kernel that has one open, by the kernels' ids."""
        sessions = await self._app.session_manager.list_sessions()
        return {model["kernel"]["id"]: model["path"] for model in sessions if model.get("kernel")}

    def file_of(self, path: str) -> str:
        """A notebook's path on this machine."""
        return str(self.root / path.strip("/")) if path else ""

    def path_of(self, file: str) -> str | None:
        """A notebook's path in this server; None for one that lies elsewhere."""
        relative = os.path.relpath(file, self.root) if file else ".."
        return None if relative.startswith("..") else relative.replace(os.sep, "/")
