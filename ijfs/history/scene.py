"""All that a picture of a repository shows, read once: snapshots, names, sizes, live programs.

For `ijfs tree` and the panel in JupyterLab; ijfs.drawing lays it out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ijfs.drawing import tree as drawing
from ijfs.history.snapshots import History, Labels, program_of

if TYPE_CHECKING:
    from ijfs.live.model.records import InstanceInfo
    from ijfs_engine import Repository, Snapshot


@dataclass(frozen=True)
class Scene:
    """What there is to see of a repository at `path`, and the programs of it that are live."""

    path: str
    history: History
    stored: int
    """Bytes that the repository takes on disk; of a part of it, what storing that took."""
    live: Sequence[InstanceInfo]

    @classmethod
    def of(cls, repository: Repository, live: Sequence[InstanceInfo]) -> Scene:
        """Read it."""
        stats = repository.stats()
        stored = stats.pack_bytes + stats.index_bytes + stats.journal_bytes
        return cls(str(repository.path), History.of(repository), stored, live)

    @classmethod
    def nothing(cls, path: str) -> Scene:
        """A repository that is still to be made."""
        return cls(path, History({}, {}, Labels({}, {})), 0, ())

    @property
    def logical(self) -> int:
        """What all snapshots hold."""
        return sum(s.size or 0 for s in self.history.snapshots.values())

    def at(self, snapshot_id: bytes) -> list[InstanceInfo]:
        """The live programs that stand on a snapshot."""
        return [info for info in self.live if info.snapshot == snapshot_id.hex()]

    def around(self, some: Collection[bytes], programs: Collection[str] = ()) -> Scene:
        """The whole trees that these snapshots are in, and what lives on them; `programs`: also these live ones, which
        were perhaps not saved yet."""
        kept = self.history.relatives(some)
        live = [i for i in self.live if i.name in programs or (i.snapshot and bytes.fromhex(i.snapshot) in kept)]
        history = self.history.only(kept)
        return replace(self, history=history, stored=sum(s.added or 0 for s in history.snapshots.values()), live=live)

    def drawn(self) -> drawing.Scene:
        """The same as the drawing takes it."""
        labels = self.history.labels
        snapshots = [
            drawing.Snap(
                s.id.hex(),
                [parent.hex() for parent in self.history.parents[s.id]],
                s.created_ns,
                s.message,
                program_of(s),
                s.size,
                s.added,
                labels.branches.get(s.id, ()),
                labels.tags.get(s.id, ()),
            )
            for s in self.history.snapshots.values()
        ]
        live = [drawing.LiveProgram(i.name, i.snapshot, i.memory) for i in self.live]
        return drawing.Scene(self.path, snapshots, live, self.stored)

    def json(self, snapshot: Snapshot) -> dict[str, Any]:
        """A snapshot with what the picture shows beside it."""
        return {
            **self.history.json(snapshot),
            "logical": snapshot.size,
            "added": snapshot.added,
            "live": [info.name for info in self.at(snapshot.id)],
        }
