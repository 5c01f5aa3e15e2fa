"""What new sandboxes begin as: snapshots by name. Called by sandboxes.py.

`base` runs nothing but a sleeper, for commands and files; `code-interpreter-v1` is a Python kernel. Both are made and
saved when they are first asked for. Any tag of the repository is a template, too, and so is a snapshot that a client of
the same key made, by its name or id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from ijfs.live.model.records import Limits, Network
from ijfs.sdk import aio
from ijfs.sdk.box import Box
from ijfs.sdk.repository import Repository
from ijfs.sdk.snapshots import Snapshot
from ijfs.serve.errors import ApiError
from ijfs.serve.records import Context, Records

BASE, INTERPRETER = "base", "code-interpreter-v1"
SLEEPER = ("sleep", "infinity")


@dataclass(frozen=True)
class Template:
    """What a sandbox begins as."""

    name: str
    snapshot: Snapshot
    contexts: tuple[Context, ...] = ()


class Templates:
    """All templates of one repository. `kernel`: the kernel spec of code interpreters; `home`: the directory where
    programs start, and their HOME; `network`: their way out."""

    def __init__(self, repo: Repository, records: Records, *, kernel: str, home: str, network: Network) -> None:
        self._repo, self._records = repo, records
        # Commands are run by login shells: whose start-up files those read is whoever's home it is.
        where: dict[str, Any] = {"cwd": home, "env": {"HOME": home}, "network": network}
        self._built_in: dict[str, Callable[..., Box]] = {
            BASE: partial(repo.start, SLEEPER, **where),
            INTERPRETER: partial(repo.kernel, kernel, **where),
        }
        self._making = {name: asyncio.Lock() for name in self._built_in}

    async def find(self, name: str, owner: str) -> Template:
        """By its name or id, as far as this key may see it; ApiError 404."""
        found = await aio.in_thread(self._stored, name, owner)
        if found is None and name in self._built_in:
            async with self._making[name]:
                found = await aio.in_thread(self._stored, name, owner) or await aio.in_thread(self._make, name)
        if found is None:
            raise ApiError(404, f"there is no template `{name}`: `ijfs tag` names a snapshot, which is one then")
        return found

    def _stored(self, name: str, owner: str) -> Template | None:
        record = next((r for r in self._records.snapshots.all() if name == r.id or name in r.names), None)
        if record is not None:
            snapshot = Snapshot(self._repo.path, record.id)
            return Template(name, snapshot, record.contexts) if record.owner == owner else None
        tagged = self._repo.tags().get(name)
        return Template(name, tagged) if tagged is not None else None

    def _make(self, name: str) -> Template:
        making = f"making-{name}"
        Box(self._repo.path, making).discard()  # of a server that was killed meanwhile
        with self._built_in[name](name=making) as box:
            snapshot = box.save(f"the template {name}")
        snapshot.tag(name)
        snapshot.forget_branch(making)
        return Template(name, snapshot)


def limits_of(snapshot: Snapshot) -> Limits:
    """What the program of a snapshot might take when it was saved."""
    spec = snapshot.record.meta.get("spec")
    return msgspec.convert(spec.get("limits", {}) if isinstance(spec, dict) else {}, Limits)
