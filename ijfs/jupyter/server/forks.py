"""What a request makes new: a copy of a kernel in a tab of its own, and the kernel that a reopened notebook goes on
with. Made by handlers.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ijfs.history.notebooks import Document
from ijfs.history.scene import Scene
from ijfs.jupyter.kernelspec import KernelSpecError, installed
from ijfs.jupyter.provisioner import BEGINS_AS, JOINS
from ijfs.jupyter.server import requests, tree
from ijfs.jupyter.server.documents import document_of
from ijfs.jupyter.server.kernels import Kernels
from ijfs.jupyter.server.opening import in_repository
from ijfs.jupyter.server.programs import packed
from ijfs.live.client import api as client
from ijfs_engine import Repository, Snapshot
from ijfs_engine.errors import NoRepositoryError

Answer = dict[str, Any]


class Forks:
    """New kernels from what was saved, in one Jupyter server."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    async def fork(self, request: requests.Fork) -> Answer:
        """A copy of a kernel (saved first) or of a snapshot, as the kernel of a copy of the notebook."""
        repo = self._kernels.repository(request)
        spec = request.snapshot
        if not spec:
            target = self._kernels.target(request.kernel)
            spec = await asyncio.to_thread(_saved, target.repo, target.instance, request)
        snapshot, document = await asyncio.to_thread(_found, repo, spec)
        if not request.snapshot and request.document is not None:
            document = request.document
        path = await self._kernels.copy_of(request.path or self._path_of(snapshot) or "fork.ipynb", document)
        kernel = await self._kernels.start(self._spec_name(snapshot), path, repo, **{BEGINS_AS: snapshot.id.hex()})
        session = await self._kernels.new_session(path, kernel)
        return {
            "snapshot": snapshot.id.hex(),
            "instance": self._kernels.target(kernel).instance,
            "path": path,
            "session": session,
            "kernel": session["kernel"],
        }

    async def offer(self, request: requests.Offer) -> Answer:
        """What a reopened notebook can go on with: its newest snapshot, where no program stands on that; programs of it
        that live and are no kernel of this server."""
        repo = self._kernels.repository(request)
        file = self._kernels.file_of(request.path)
        kernels = self._kernels.of_instances(repo)

        def look() -> Answer:
            live = [info for info in client.list_instances(repo) if info.status == "running"]
            own = [info for info in live if info.kind == "kernel" and info.notebook == file]
            return {
                "snapshot": _newest(repo, live, file, self._kernels),
                "live": [tree.live_json(info, {}, {}) for info in own if info.name not in kernels],
            }

        return await asyncio.to_thread(look)

    async def resume(self, request: requests.Resume) -> Answer:
        """A kernel for a notebook, from a snapshot or as the live program that it is."""
        repo = self._kernels.repository(request)
        if request.instance:
            info = await asyncio.to_thread(client.describe, repo, request.instance)
            name = info.connection["kernel_name"] if info.connection else ""
            kernel = await self._kernels.start(_spec_like(name), request.path, repo, **{JOINS: request.instance})
            return {**self._resumed(kernel), "snapshot": info.snapshot, "document": None}
        snapshot, document = await asyncio.to_thread(_found, repo, request.snapshot)
        launch = {BEGINS_AS: snapshot.id.hex()}
        kernel = await self._kernels.start(self._spec_name(snapshot), request.path, repo, **launch)
        return {**self._resumed(kernel), "snapshot": snapshot.id.hex(), "document": document}

    def _resumed(self, kernel: str) -> Answer:
        return {"kernel": self._kernels.model(kernel), "instance": self._kernels.target(kernel).instance}

    def _path_of(self, snapshot: Snapshot) -> str:
        return self._kernels.path_of(str(tree.spec_of(snapshot).get("notebook", ""))) or ""

    def _spec_name(self, snapshot: Snapshot) -> str:
        return _spec_like(str(tree.spec_of(snapshot).get("kernel_name", "")))


def _spec_like(name: str) -> str:
    """The installed kernel spec of ijfs that a kernel was started by, or one made from the spec that it was."""
    specs = [spec for spec in installed() if not spec.config.get("attach")]
    found = [spec.name for spec in specs if spec.name == name] or [spec.name for spec in specs if spec.base == name]
    if not found and not specs:
        raise KernelSpecError("no kernel of ijfs is installed", hint="`ijfs kernel install` makes one")
    return found[0] if found else specs[0].name


def _saved(repo: Path, instance: str, request: requests.Fork) -> str:
    message = request.message or f"where {request.name or 'a copy'} begins"
    with client.connect(repo, instance) as keeper:
        return keeper.save(message, notebook=packed(request.document)).snapshot


def _found(repo: Path, spec: str) -> tuple[Snapshot, Document | None]:
    def read(repository: Repository) -> tuple[Snapshot, Document | None]:
        snapshot = repository.snapshot(repository.resolve(spec))
        return snapshot, document_of(repository.reader(), snapshot)

    return in_repository(repo, read)


def _newest(repo: Path, live: list[client.InstanceInfo], file: str, kernels: Kernels) -> Answer | None:
    try:
        scene = in_repository(repo, lambda repository: Scene.of(repository, live))
    except NoRepositoryError:
        return None
    own = [s for s in scene.history.snapshots.values() if tree.spec_of(s).get("notebook") == file]
    newest = next((s for s in own if not s.meta.get("ended")), None)
    if newest is None or scene.at(newest.id):
        return None
    return tree.snapshot_json(scene, newest, kernels.path_of)
