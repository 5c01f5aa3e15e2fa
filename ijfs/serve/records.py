"""What the server writes down, below `<repository>/serve/`: sandboxes, snapshots that clients made, what may go.

One small file each, replaced by rename: a server that is killed finds on its next start what there is. Files are 0600:
a sandbox's tokens are in its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec

from ijfs.live.model.record_file import replace_file
from ijfs.live.model.records import NO_LIMITS, Limits

State = Literal["starting", "running", "pausing", "paused"]
AtTheEnd = Literal["kill", "pause"]


class Context(msgspec.Struct, frozen=True):
    """Where cells run with variables of their own (interpreter/contexts.py)."""

    id: str
    cwd: str
    language: str = "python"


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox. `id` is its instance's name; `owner` the key that it was made with. `token` opens its data plane,
    and `traffic_token` its ports; `ends_ns`: when its time is over, and `at_the_end` what happens then. `paused_at`:
    the snapshot that a paused one goes on from; `resumes`: by itself, when it is called; `limits`: what it may take."""

    id: str
    owner: str
    template: str
    token: str
    traffic_token: str
    started_ns: int
    ends_ns: int
    state: State = "starting"
    at_the_end: AtTheEnd = "kill"
    resumes: bool = False
    paused_at: str = ""
    metadata: dict[str, str] = {}
    contexts: tuple[Context, ...] = ()
    limits: Limits = NO_LIMITS

    @property
    def is_paused(self) -> bool:
        """Whether it stands still, or is about to."""
        return self.state in ("pausing", "paused")


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that a client asked for: it stays until a client deletes it. `names` are its tags."""

    id: str
    owner: str
    sandbox: str
    made_ns: int
    names: tuple[str, ...] = ()
    contexts: tuple[Context, ...] = ()


class Leftover(msgspec.Struct, frozen=True):
    """A snapshot that the server made for itself (a pause, a fork): it goes once nothing stands on it."""

    id: str


R = TypeVar("R", SandboxRecord, SnapshotRecord, Leftover)


class Table(Generic[R]):
    """Records of one kind, a file each."""

    def __init__(self, directory: Path, kind: type[R]) -> None:
        self._directory = directory
        self._kind: type[R] = kind
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def all(self) -> list[R]:
        """Those that can be read; a file that cannot is left alone."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(msgspec.json.decode(path.read_bytes(), type=self._kind))
        return found

    def put(self, record: R) -> R:
        """Write it down; itself. StorageError."""
        replace_file(self._path(record.id), msgspec.json.encode(record))
        return record

    def remove(self, ident: str) -> None:
        """Nothing where there is none."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(ident))

    def _path(self, ident: str) -> Path:
        return self._directory / f"{ident}.json"


class Records:
    """All tables of one repository."""

    def __init__(self, repo: Path) -> None:
        self.directory = repo / "serve"
        self.sandboxes: Table[SandboxRecord] = Table(self.directory / "sandboxes", SandboxRecord)
        self.snapshots: Table[SnapshotRecord] = Table(self.directory / "snapshots", SnapshotRecord)
        self.leftovers: Table[Leftover] = Table(self.directory / "leftovers", Leftover)
