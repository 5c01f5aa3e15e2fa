"""What happens in a repository, put on Jupyter's event bus: a panel hears of a save that was made in a terminal."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ijfs.live.client.watch import KINDS, RepositoryEvent, RepositoryWatch
from ijfs_engine.errors import IjfsError

SCHEMA_ID = "urn:ijfs:events:v1"
_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "$id": SCHEMA_ID,
    "version": "1",
    "title": "Snapshots and live programs of ijfs",
    "description": "Something happened in an ijfs repository: a save, a program that went back, a name that moved.",
    "personal-data": True,
    "type": "object",
    "required": ["kind", "repository"],
    "properties": {
        "kind": {"enum": list(KINDS)},
        **dict.fromkeys(("repository", "instance", "kernel", "snapshot", "text"), _TEXT),
    },
}

KernelOf = Callable[[Path, str], str]
"""The kernel of this server that an instance of a repository is, or ""."""


class Events:
    """Watches repositories for a Jupyter server, each in a thread that ends with the server."""

    def __init__(self, logger: Any, kernel_of: KernelOf) -> None:
        self._logger = logger
        self._kernel_of = kernel_of
        self._watched: set[Path] = set()
        self._watches: list[RepositoryWatch] = []
        logger.register_event_schema(SCHEMA)
        atexit.register(self._stop)

    def follow(self, repo: Path) -> None:
        """Put what happens in a repository on the bus from now on; where there is none yet, nothing is done. Called in
        the server's loop."""
        if repo in self._watched or not repo.is_dir():
            return
        with contextlib.suppress(IjfsError, OSError):
            watch = RepositoryWatch(repo, documents=True)
            self._watched.add(repo)
            self._watches.append(watch)
            loop = asyncio.get_running_loop()
            threading.Thread(
                target=self._run, args=[repo, watch, loop], name=f"ijfs-events-{repo.name}", daemon=True
            ).start()

    def _run(self, repo: Path, watch: RepositoryWatch, loop: asyncio.AbstractEventLoop) -> None:
        with watch, contextlib.suppress(RuntimeError):  # the loop was closed: the server ends
            for event in watch:
                loop.call_soon_threadsafe(self._emit, repo, event)

    def _emit(self, repo: Path, event: RepositoryEvent) -> None:
        data = {
            "kind": event.kind,
            "repository": str(repo),
            "instance": event.instance,
            "kernel": self._kernel_of(repo, event.instance) if event.instance else "",
            "snapshot": event.snapshot,
            "text": event.text,
        }
        self._logger.emit(schema_id=SCHEMA_ID, data=data)

    def _stop(self) -> None:
        for watch in self._watches:
            watch.stop()
