"""adopt: the files of an instance or snapshot compared with the machine's, and taken home. For the command line.

ijfs.live.adopt does both; here it is found out what a name stands for, and what earlier adopts have put where.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ijfs.live.adopt import noted
from ijfs.live.adopt.apply import Done, apply
from ijfs.live.adopt.branch import Branch, LayerFiles, SnapshotFiles, entry_on_disk
from ijfs.live.adopt.plan import Step, plan, scope_of
from ijfs.live.checkpoint.ahead import StatKey
from ijfs.live.checkpoint.shared_folders import OF_THE_HOST
from ijfs.live.checkpoint.snapshot_io import live_meta
from ijfs.live.client.record import record_of
from ijfs.live.errors import NoInstanceError, NotLiveError
from ijfs.live.model.paths import BadNameError, InstancePaths
from ijfs.live.model.records import InstanceRecord
from ijfs.live.sandbox import disk
from ijfs.live.sandbox.scratch import SCRATCH
from ijfs.live.sandbox.volumes import OWN, is_below
from ijfs_engine import Entry, ObjectId, Reader, Repository, Snapshot
from ijfs_engine.errors import ConflictError, IjfsError

# How far back a file of the machine is looked for in what the branch once had.
MOST_ANCESTORS = 50
MOST_NAMES = 5
"""Of paths that an error names."""
Choice = Literal["ours", "theirs"]
"""Whose is kept where both sides have changed something: the machine's, or the program's."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A branch beside its machine. `steps` take home what was asked for; `elsewhere` would take home the rest."""

    branch: Branch
    steps: tuple[Step, ...]
    elsewhere: tuple[Step, ...]


class Adoption:
    """What `name`, an instance or else a snapshot, has to take home. NotLiveError, UnknownNameError."""

    def __init__(self, repository: Repository, name: str) -> None:
        self._repository, self._name = repository, name
        self._reader = repository.reader()
        found = _instance(repository, name)
        self.branch = found or _snapshot(repository, self._reader, name)
        self._notes = InstancePaths.of(repository.path, name).adopted if found is not None else None
        self._noted = noted.read(self._notes) if self._notes is not None else {}

    def compare(self, paths: Sequence[str]) -> Comparison:
        """With the machine as it is now: what lies at these paths, by default in the program's directory."""
        branch = self.branch
        scope = scope_of(branch, paths)
        scope = [path for path in scope if not is_below(Path(os.fsdecode(path) or "/"), self._at_home())]
        if paths:
            return Comparison(branch, tuple(self._plan(scope)), ())
        everything = tuple(self._plan([b"", *self._volumes_in_hidden()]))
        inside = tuple(path + b"/" for path in scope)
        here = tuple(step for step in everything if (step.path + b"/").startswith(inside))
        return Comparison(branch, here, tuple(step for step in everything if not (step.path + b"/").startswith(inside)))

    def chosen(self, found: Comparison, keep: Choice | None) -> list[Step]:
        """What is to be done of it. ConflictError where both sides have changed something, unless it is chosen whose is
        kept."""
        steps = [step for step in found.steps if not (step.conflict and keep == "ours")]
        conflicts = [os.fsdecode(step.path) for step in steps if step.conflict]
        if conflicts and keep is None:
            more = f" and {len(conflicts) - MOST_NAMES} more" if len(conflicts) > MOST_NAMES else ""
            raise ConflictError(
                f"both `{self._name}` and this machine have changed {', '.join(conflicts[:MOST_NAMES])}{more}; nothing "
                "was done",
                hint="`--theirs` takes those of the branch, `--ours` leaves the machine's, `--dry-run` lists all",
            )
        return steps

    def take_home(self, steps: Sequence[Step]) -> Iterator[Done]:
        """Do these steps; what was put where is remembered, also when this ends early."""
        notes: dict[bytes, StatKey] = dict(self._noted)
        try:
            for done in apply(self.branch, steps):
                if done.key is not None:
                    notes[done.step.path] = done.key
                yield done
        finally:
            if self._notes is not None:
                noted.write(self._notes, notes)

    def on_host(self, step: Step) -> Entry | None:
        """What the machine has at a step's path; None where there is nothing. OSError."""
        return entry_on_disk(step.path) if step.host is not None else None

    def contents(self, step: Step) -> tuple[bytes | None, bytes | None]:
        """A file's bytes, on the machine and in the branch; None where there is none. OSError, StorageError."""
        old = Path(os.fsdecode(step.path)).read_bytes() if step.host is not None else None
        new = b"".join(self.branch.files.pieces(step.path, step.file)) if step.file is not None else None
        return old, new

    def _plan(self, scope: Sequence[bytes]) -> Iterator[Step]:
        repository = os.fsencode(self._repository.path.resolve())
        without = frozenset([*map(os.fsencode, (*self._hidden(), *self._at_home())), repository])
        return plan(self.branch, scope, self._noted, self._reader, without=without)

    def _at_home(self) -> list[str]:
        """Folders of the machine that the branch works in itself: what it writes there is at home already."""
        return [volume.path for volume in self.branch.volumes if volume.kind in OF_THE_HOST]

    def _hidden(self) -> list[str]:
        """Scratch directories, and those of which a sandbox has its own."""
        volumes = [volume.path for volume in self.branch.volumes if volume.path not in SCRATCH]
        return [path for path in OWN if not is_below(Path(path), volumes)]

    def _volumes_in_hidden(self) -> list[bytes]:
        """The machine's directories that a program sees in spite of that, its own working directory for one."""
        paths = [Path(volume.path) for volume in self.branch.volumes if volume.path not in SCRATCH]
        shown = [path for path in paths if is_below(path, self._hidden())]
        return [os.fsencode(path) for path in shown if not is_below(path.parent, shown)]


def _instance(repository: Repository, name: str) -> Branch | None:
    try:
        paths = InstancePaths.of(repository.path, name)
        record = record_of(paths)
    except (NoInstanceError, BadNameError):
        return None
    ancestors = _ancestors(repository, record.snapshot)
    return Branch(
        name=name,
        cwd=record.spec.cwd,
        files=_layers(paths, record),
        origin=record.origin,
        volumes=record.volumes,
        on_base=record.base is not None,
        ancestors=tuple(one.root for one in ancestors),
        common=_common(ancestors),
    )


def _layers(paths: InstancePaths, record: InstanceRecord) -> LayerFiles:
    box = paths.sandbox(record.generation)
    volumes = [(volume.path, box.volume(volume.key).upper) for volume in record.volumes if volume.is_layer]
    with disk.opened(box) as place:
        layers = [(inside, place / upper.relative_to(box.layers)) for inside, upper in [("/", box.upper), *volumes]]
        return LayerFiles(layers)


def _snapshot(repository: Repository, reader: Reader, name: str) -> Branch:
    snapshot = repository.snapshot(repository.resolve(name))
    meta = live_meta(snapshot)
    ancestors = _ancestors(repository, snapshot.id.hex())
    return Branch(
        name=meta.spec.name,
        cwd=meta.spec.cwd,
        files=SnapshotFiles(reader, snapshot.root),
        origin=meta.origin,
        volumes=meta.volumes,
        on_base=meta.base is not None,
        ancestors=tuple(one.root for one in ancestors),
        common=_common(ancestors),
    )


def _ancestors(repository: Repository, newest: str | None) -> tuple[Snapshot, ...]:
    """A snapshot and those before it, newest first."""
    found: list[Snapshot] = []
    at = newest
    while at is not None and len(found) < MOST_ANCESTORS:
        try:
            found.append(repository.snapshot(repository.resolve(at)))
        except IjfsError:  # removed: what is older is not reached through it
            break
        parents = repository.parents(found[-1].id)
        at = parents[0].hex() if parents else None
    return tuple(found)


def _common(ancestors: Sequence[Snapshot]) -> ObjectId | None:
    """The root tree of the newest of them whose program shared folders."""
    return next((snapshot.root for snapshot in ancestors if _shared(snapshot)), None)


def _shared(snapshot: Snapshot) -> bool:
    try:
        return any(volume.kind == "shared" for volume in live_meta(snapshot).volumes)
    except NotLiveError:
        return False
