"""Which instance a kernel of this server is, and which notebook it belongs to. For api.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_core.utils import ensure_async

from ijfs.jupyter.provisioner import IjfsProvisioner
from ijfs.jupyter.repository import choose_repository
from ijfs.jupyter.server.requests import Request
from ijfs.live.client.api import InstanceInfo
from ijfs_engine.errors import ConflictError, IjfsError

REPOSITORY_VARIABLE = "IJFS_REPO"
"""By which a kernel that is started is told its repository, where its spec names none."""
EMPTY: dict[str, Any] = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


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

    def kernel_of(self, repo: Path, instance: str) -> str:
        """The kernel that an instance is; "" where it is none of this server's."""
        return self.of_instances(repo).get(instance, "")

    def repository(self, request: Request) -> Path:
        """The repository that a request is about: the one it names, its kernel's, or the server's own."""
        if request.repository:
            return choose_repository(request.repository)
        target = self.target_or_none(request.kernel)
        return target.repo if target is not None else choose_repository(None)

    def target_or_none(self, kernel: str) -> Target | None:
        """The instance that a kernel is; None where none was named, or it is not ijfs's."""
        try:
            return self.target(kernel) if kernel else None
        except NotIjfsError:
            return None

    async def start(self, kernel_name: str, path: str, repo: Path, **launch: str) -> str:
        """Start a kernel for a notebook; its id. `launch`: what the provisioner is told of this launch alone."""
        env = {
            **self._app.session_manager.get_kernel_env(path, path.rpartition("/")[2]),
            REPOSITORY_VARIABLE: str(repo),
        }
        manager = self._app.kernel_manager
        return str(await ensure_async(manager.start_kernel(kernel_name=kernel_name, path=path, env=env, **launch)))

    def model(self, kernel: str) -> dict[str, Any]:
        """A kernel as Jupyter shows it."""
        return dict(self._app.kernel_manager.kernel_model(kernel))

    async def new_session(self, path: str, kernel: str) -> dict[str, Any]:
        """A notebook is open, with this kernel: Jupyter's session."""
        sessions = self._app.session_manager
        name = self._app.kernel_manager.get_kernel(kernel).kernel_name
        made = sessions.create_session(
            path=path, name=path.rpartition("/")[2], type="notebook", kernel_name=name, kernel_id=kernel
        )
        return dict(await ensure_async(made))

    async def copy_of(self, path: str, document: dict[str, Any] | None) -> str:
        """Write a notebook beside another, under a free name; its path."""
        contents = self._app.contents_manager
        directory, _, name = path.strip("/").rpartition("/")
        stem = name.removesuffix(".ipynb")
        chosen = await ensure_async(contents.increment_filename(f"{stem}-fork.ipynb", directory, insert="-"))
        where = f"{directory}/{chosen}".lstrip("/")
        content = document if document is not None else EMPTY
        await ensure_async(contents.save({"type": "notebook", "format": "json", "content": content}, where))
        return where

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
