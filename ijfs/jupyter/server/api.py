"""What is done for each request of the panel. Made by handlers.py; what blocks runs in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ijfs import __version__
from ijfs.history.scene import Scene
from ijfs.jupyter.repository import choose_repository
from ijfs.jupyter.server import requests, tree
from ijfs.jupyter.server.comparing import compared
from ijfs.jupyter.server.documents import document_of
from ijfs.jupyter.server.events import SCHEMA_ID, Events
from ijfs.jupyter.server.kernels import Kernels, NotIjfsError, Target
from ijfs.jupyter.server.opening import in_repository
from ijfs.live.client import api as client
from ijfs.live.model.records import KernelState
from ijfs_engine import Repository, Snapshot
from ijfs_engine.errors import NoRepositoryError, UnknownNameError

Answer = dict[str, Any]
R = TypeVar("R", bound=requests.Request)


class Api:
    """The panel's API, of one Jupyter server."""

    def __init__(self, kernels: Kernels, events: Events) -> None:
        self._kernels = kernels
        self._events = events

    async def info(self, request: requests.Info) -> Answer:
        """What the extension is, and which repository it takes where none is named."""
        return {"version": __version__, "repository": str(choose_repository(None)), "schema": SCHEMA_ID}

    async def tree(self, request: requests.Tree) -> Answer:
        """The picture of a repository; an empty one where there is none yet."""
        target = self._kernels.target_or_none(request.kernel)
        repo = self._kernels.repository(request)
        self._events.follow(repo)
        instance = target.instance if target is not None else ""
        paths = await self._kernels.paths()
        kernels = self._kernels.of_instances(repo)
        notebook = self._kernels.file_of(request.path)

        def look() -> Answer:
            live = [info for info in client.list_instances(repo) if info.status != "exited"]
            scene = _scene(repo, live)
            if request.scope == "notebook":
                scene = scene.around(tree.made_by(scene, instance, notebook), [instance])
            here = next((info.snapshot for info in live if info.name == instance), None)
            return {
                **tree.scene_json(scene, self._kernels.path_of, fold=request.fold),
                "instance": instance or None,
                "here": here,
                "live": [tree.live_json(info, kernels, paths) for info in scene.live],
            }

        return await asyncio.to_thread(look)

    async def status(self, request: requests.Status) -> Answer:
        """How a kernel stands; of one that is not ijfs's, that it is not."""
        try:
            target = self._kernels.target(request.kernel)
            self._events.follow(target.repo)
        except NotIjfsError as error:
            return {"ijfs": False, "reason": str(error), "hint": error.hint}
        return await asyncio.to_thread(_status, target)

    async def document(self, request: requests.DocumentOf) -> Answer:
        """The notebook that was stored with a snapshot."""

        def read(repository: Repository) -> Answer:
            snapshot = repository.snapshot(repository.resolve(request.snapshot))
            return {"snapshot": snapshot.id.hex(), "document": document_of(repository.reader(), snapshot)}

        return await self.using(request, lambda repo, _: in_repository(repo, read))

    async def compare(self, request: requests.Compare) -> Answer:
        """What differs between two states of a kernel."""
        target = self._kernels.target_or_none(request.kernel)
        instance = target.instance if target is not None else ""
        return await self.using(request, lambda repo, asked: compared(repo, asked, instance))

    # -- what requests share --------------------------------------------------------------------------------------

    async def using(self, request: R, do: Callable[[Path, R], Answer]) -> Answer:
        """What `do` makes of a request, in a thread, with the repository that it is about."""
        repo = self._kernels.repository(request)
        return await asyncio.to_thread(do, repo, request)


def _scene(repo: Path, live: list[client.InstanceInfo]) -> Scene:
    try:
        return in_repository(repo, lambda repository: Scene.of(repository, live))
    except NoRepositoryError:
        return Scene.nothing(str(repo))


def _status(target: Target) -> Answer:
    info = client.describe(target.repo, target.instance)
    snapshot = _snapshot(target.repo, info.snapshot)
    doing = info.kernel or KernelState()
    return {
        "ijfs": True,
        "instance": info.name,
        "repository": str(target.repo),
        "attached": target.attached,
        **{name: getattr(info, name) for name in ("status", "snapshot", "memory", "saving", "save_error", "damage")},
        "unsaved": info.unsaved,
        "busy": doing.busy,
        "count": doing.count,
        "waiting_for_input": doing.prompt is not None,
        "prompt": doing.prompt,
        "message": snapshot.message if snapshot is not None else None,
        "saved_ns": snapshot.created_ns if snapshot is not None else None,
        "size": snapshot.size if snapshot is not None else None,
        "added": snapshot.added if snapshot is not None else None,
        "frozen_s": snapshot.meta.get("frozen_s") if snapshot is not None else None,
    }


def _snapshot(repo: Path, ident: str | None) -> Snapshot | None:
    """The record of the snapshot that a program stands on; None where it has none, or that was removed."""
    if ident is None:
        return None
    try:
        return in_repository(repo, lambda repository: repository.snapshot(bytes.fromhex(ident)))
    except UnknownNameError:
        return None
