"""What of a live instance is in a snapshot, and the ways in and out of the repository; used by freeze.py and
restore.py.

The one module of ijfs.live that speaks with the engine about snapshots. Meta of a live snapshot is a LiveMeta.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ijfs.live.checkpoint import inodes, python_packages
from ijfs.live.checkpoint.files_before import FilesBefore
from ijfs.live.checkpoint.phases import OnPhase
from ijfs.live.checkpoint.python_packages import Packages
from ijfs.live.checkpoint.workspace import Capture
from ijfs.live.criu import stage_images
from ijfs.live.errors import NotLiveError
from ijfs.live.model.records import Base, FilesOrigin, InstanceSpec, KernelState, Volume
from ijfs.live.process import processor
from ijfs.live.process.scheduling import ThreadSchedule
from ijfs.live.process.timers import NotifiedThread
from ijfs.live.sandbox.network_state import NetworkState
from ijfs_engine import (
    InodeNumbers,
    KeptPrints,
    ObjectId,
    Progress,
    Reader,
    Repository,
    Segments,
    Snapshot,
    export_tree,
)
from ijfs_engine.errors import CorruptError, UnknownNameError

if TYPE_CHECKING:
    from ijfs.live.gpu.program import GpuRecord


class GuestMeta(msgspec.Struct, frozen=True):
    """What a restored program's keeper has to know of it: the number of its own call of `ijfs.save()`, where it was one
    that asked, and the ports where its hooks listen (docs/architecture.md, "The guest protocol")."""

    nonce: str | None = None
    hook_ports: tuple[int, ...] = ()


class LiveMeta(msgspec.Struct, frozen=True, kw_only=True):
    """A live snapshot's meta. `gpu`: a GpuRecord, or None.
    `versions` (`environment` in the bytes): of the kernel, CRIU and so on, where it was saved.
    `auto`: made after a cell by itself; only those are thinned out by themselves. `base`: what its sandbox stood on,
    None where that was its machine's own root. `network`: what the program changed in its network. `frozen_at_ns`: by
    the wall clock; 0 where it is not known. `timers`: which thread each timer notifies. `scheduling`: threads whose
    processors, io priority or timer slack are not those of a new program. `ended`: made of the files of a program that
    had ended: there is no memory, and nothing to restore.
    `origin`: when and where its files began to stand over a machine's; None in older snapshots. `kernel`: what
    a kernel was doing."""

    spec: InstanceSpec
    volumes: tuple[Volume, ...] = ()
    versions: dict[str, str] = msgspec.field(default_factory=dict, name="environment")
    guest: GuestMeta = GuestMeta()
    gpu: dict[str, Any] | None = None
    image_bytes: int = 0
    workspace_bytes: int = 0
    frozen_s: float = 0.0
    frozen_at_ns: int = 0
    timers: tuple[NotifiedThread, ...] = ()
    auto: bool = False
    base: Base | None = None
    network: NetworkState | None = None
    scheduling: tuple[ThreadSchedule, ...] = ()
    ended: bool = False
    origin: FilesOrigin | None = None
    kernel: KernelState | None = None


class SaveContents(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one save puts into the repository, and `notes` for whoever asked for it."""

    images: Mapping[str, Segments | bytes]
    workspace: Capture
    notebook: bytes | None
    meta: LiveMeta
    message: str
    branch: str
    notes: tuple[str, ...] = ()
    unrestorable: tuple[str, ...] = ()
    """Why it cannot be restored, known already."""
    packages: Packages = {}
    """Python packages that it could import."""


class SaveOutcome(NamedTuple):
    """A committed save: the snapshot, what a person should know, the bytes it added on disk."""

    snapshot: Snapshot
    notes: list[str]
    stored_bytes: int


class SnapshotStore:
    """A repository, opened when it is first needed and kept open for as long as the keeper lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opening = threading.Lock()
        self._repository: Repository | None = None
        self._kept = KeptPrints()
        self._reader: Reader | None = None

    @property
    def repository(self) -> Repository:
        """The open repository. NoRepositoryError, UnknownFormatError."""
        with self._opening:  # the loop and a thread may both need it first, and LMDB is opened once in a process
            if self._repository is None:
                self._repository = Repository.open(self.path)
            return self._repository

    @property
    def reader(self) -> Reader:
        """One reader for all that is put back."""
        if self._reader is None:
            self._reader = self.repository.reader()
        return self._reader

    def close(self) -> None:
        """Let go of the repository."""
        if self._repository is not None:
            self._repository.close()
            self._repository = None

    def forget_removed(self) -> None:
        """Let go of packs that gc has removed meanwhile, so that their space is free."""
        if self._repository is not None:
            self._repository.forget_removed()

    def load(self, spec: str) -> tuple[Snapshot, LiveMeta]:
        """A snapshot by any of its names, and what it says of its program. NotLiveError for an imported one, and for
        one that holds the files of an ended program."""
        snapshot = self.repository.snapshot(self.repository.resolve(spec))
        return snapshot, program_in(snapshot)

    def tree_at(self, snapshot: Snapshot, path: str) -> ObjectId | None:
        """The tree at a path of a snapshot; None where there is nothing (or an empty directory)."""
        try:
            return self.reader.lookup(snapshot.root, path).content
        except UnknownNameError:
            return None

    def image(self, snapshot: Snapshot, name: str) -> bytes:
        """One of CRIU's small images; nothing where it wrote none."""
        try:
            entry = self.reader.lookup(snapshot.root, f"images/{name}")
        except UnknownNameError:
            return b""
        return self.reader.open(entry).read(0, entry.size)

    def read_ahead(self, snapshot: Snapshot) -> None:
        """Have at once, where it comes over a network, what a restore reads one by one before the program runs: small
        images, and what was noted beside them."""
        if self.repository.is_here(snapshot.id):
            return
        top = {os.fsdecode(entry.name): entry for entry in self.reader.tree(snapshot.root).entries}
        noted = [self.reader.open(top[name]) for name in (python_packages.NAME, inodes.NAME) if name in top]
        tree = self.tree_at(snapshot, "images")
        images = stage_images.small_files(self.reader, tree).values() if tree is not None else ()
        stage_images.read_together(self.reader, [*noted, *images])

    def packages(self, snapshot: Snapshot) -> bytes:
        """The Python packages that its program could import (python_packages.py); nothing where none were noted."""
        try:
            entry = self.reader.lookup(snapshot.root, python_packages.NAME)
        except UnknownNameError:
            return b""
        return self.reader.open(entry).read(0, entry.size)

    def inodes(self, snapshot: Snapshot) -> dict[bytes, int]:
        """The inode numbers of its files, by path; empty where none were kept. CorruptError."""
        try:
            entry = self.reader.lookup(snapshot.root, inodes.NAME)
        except UnknownNameError:
            return {}
        return inodes.decode(self.reader.open(entry).read(0, entry.size))

    def export(
        self,
        snapshot: Snapshot,
        path: str,
        target: Path,
        *,
        numbers: InodeNumbers | None = None,
        leave_out: frozenset[bytes] = frozenset(),
    ) -> None:
        """Write a directory of a snapshot, its own metadata included, into an empty one; nothing where it has none.
        `numbers`: their inode numbers; `leave_out`: paths in it of what
        is not."""
        try:
            entry = self.reader.lookup(snapshot.root, path)
        except UnknownNameError:
            return
        export_tree(self.reader, entry.content, target, top=entry, numbers=numbers, leave_out=leave_out, unseen=True)

    def store(
        self,
        contents: SaveContents,
        parent: ObjectId | None,
        progress: Progress | None,
        on_phase: OnPhase = lambda name: None,
    ) -> SaveOutcome:
        """Commit a save. Nothing is visible unless it returns. `on_phase` is told of "ingest" and "commit"."""
        head = self.repository.refs.branches().get(contents.branch)
        parents = [ident for ident in (parent or head,) if ident is not None]
        notes = self._keep_head(contents.branch, head, parents)
        try:
            snapshot, added = self._stored(contents, parents, progress, on_phase, anew=False)
        except CorruptError as error:
            if not parents:
                raise
            snapshot, added = self._stored(contents, parents, progress, on_phase, anew=True)
            was = parents[0].hex()[:12]
            notes.append(f"{was}, the snapshot before, is damaged ({error}): this one was stored whole, without it")
        return SaveOutcome(snapshot, notes, added)

    def _stored(
        self,
        contents: SaveContents,
        parents: Sequence[ObjectId],
        progress: Progress | None,
        on_phase: OnPhase,
        *,
        anew: bool,
    ) -> tuple[Snapshot, int]:
        """The snapshot, and the bytes it added. `anew`: as `Repository.begin` has it."""
        on_phase("ingest")
        repository = self.repository
        with repository.begin(parents, anew=anew, progress=progress, kept=self._kept) as writer:
            near = [parent for parent in parents if repository.is_here(parent)]
            before = FilesBefore(repository, self.reader, near, contents.workspace, writer)
            for at, entry in before.directories():
                writer.reuse(at, entry)
            writer.add_entries(before.rest())
            if contents.workspace.inodes:
                writer.add_file(inodes.NAME, inodes.encode(contents.workspace.inodes))
            if contents.packages:
                writer.add_file(python_packages.NAME, python_packages.encode(contents.packages))
            if contents.notebook is not None:
                writer.add_file("notebook.ipynb", contents.notebook)
            writer.add_images("images", contents.images)
            meta = msgspec.to_builtins(contents.meta)
            on_phase("commit")
            snapshot = writer.commit(message=contents.message, branch=contents.branch, meta=meta)
            repository.forget_removed()
            return snapshot, writer.stored_bytes

    def _keep_head(self, branch: str, head: ObjectId | None, parents: Sequence[ObjectId]) -> list[str]:
        """Give the branch's head a branch of its own where this save leaves it behind (the program went back): else gc
        would remove what was saved after the point that the program went back to. Returns what a person should know."""
        if head is None or not parents or head in self._ancestry(parents[0]):
            return []
        branches = self.repository.refs.branches()
        if any(ident == head for name, ident in branches.items() if name != branch):
            return []
        kept = self.repository.refs.set_aside(branch, head)
        return [f"`{branch}` went back and goes on from there; what it had before is now the branch `{kept}`"]

    def _ancestry(self, ident: ObjectId) -> set[ObjectId]:
        seen: set[ObjectId] = set()
        pending = [ident]
        while pending:
            current = pending.pop()
            if current in seen:
                continue
            seen.add(current)
            try:
                pending += self.repository.snapshot(current).parents
            except (UnknownNameError, CorruptError):  # removed, or damaged; what is below cannot be reached through it
                continue
        return seen


def gpu_record(said: dict[str, Any] | None) -> GpuRecord | None:
    """What a snapshot's meta says of the GPUs its program held; None where it held none."""
    if said is None:
        return None
    from ijfs.live.gpu.program import GpuRecord

    return msgspec.convert(said, GpuRecord, strict=False)


_PODMAN = "it is a container's: `ijfs export SNAPSHOT FILE --for podman` writes what podman restores"


def live_meta(snapshot: Snapshot) -> LiveMeta:
    """What a snapshot says of its program. NotLiveError."""
    try:
        return msgspec.convert(snapshot.meta, LiveMeta)
    except msgspec.ValidationError:
        raise NotLiveError(
            f"{snapshot.id.hex()[:12]} is not a snapshot of a program that ran in ijfs",
            hint=_PODMAN if "container" in snapshot.meta else None,
        ) from None


def program_in(snapshot: Snapshot) -> LiveMeta:
    """What a snapshot says of the program in it. NotLiveError for an import, and for an ended program's files."""
    meta = live_meta(snapshot)
    if not meta.ended:
        return meta
    ident, name = snapshot.id.hex()[:12], meta.spec.name
    hint = f"`ijfs cp {ident}:FILE .` and `ijfs export` have its files"
    for parent in snapshot.parents[:1]:
        hint = f"`ijfs restore {parent.hex()[:12]}` brings the program back as it was saved before, and {hint}"
    raise NotLiveError(
        f"{ident} holds files of `{name}` and no memory: there is no program in it to bring back",
        hint=hint,
    )


def machine_versions(criu_version: Sequence[int]) -> dict[str, str]:
    """Versions that matter to whether a snapshot can be restored here."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "criu": ".".join(map(str, criu_version)),
        "python": platform.python_version(),
        "hostname": os.uname().nodename,
        "program_python": sys.executable,
        "cpu": processor.model(),
        "cpu_flags": " ".join(sorted(processor.flags())),
    }
