"""`ijfs tree`: the picture of a repository. `ijfs.drawing` draws it; this reads what is on it, and gives it colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import instances, text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer, Span
from ijfs.drawing import tree as drawing

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo
    from ijfs_engine import Snapshot

STYLES = {
    **{f"lane{i}": style for i, style in enumerate(("cyan", "magenta", "blue", "yellow", "green", "red"))},
    "id": "yellow",
    "branch": "bold green",
    "tag": "bold magenta",
    "live": "bold green",
    "dim": "dim",
    "strong": "bold",
}
"""How a terminal shows what the drawing means."""


@dataclass(frozen=True)
class Scene:
    """All that the picture shows, read once."""

    path: str
    history: views.History
    stored: int
    """Bytes that the repository takes on disk."""
    live: Sequence[InstanceInfo]

    @property
    def logical(self) -> int:
        """What all snapshots hold."""
        return sum(s.size or 0 for s in self.history.snapshots.values())

    def at(self, snapshot_id: bytes) -> list[InstanceInfo]:
        """The live programs that stand on a snapshot."""
        return [info for info in self.live if info.snapshot == snapshot_id.hex()]


@verb("tree")
@click.option("-a", "--all", "every", is_flag=True, help="Draw long stretches whole.")
@click.option("--ascii", "plain", is_flag=True, help="No line-drawing characters.")
def tree(app: App, every: bool, plain: bool) -> Answer:
    """Draw snapshots, [branches], (tags) and live programs (▶). Time runs down; a fork branches off to the right.

    HOLDS is all memory and files of a snapshot, NEW what storing it took on disk. What only it needs now is what
    `ijfs du` says. Many branches of one name are drawn as one line unless --all.
    """
    scene = look(app)
    data = {
        "path": scene.path,
        "snapshots": [_node_json(scene, s) for s in scene.history.snapshots.values()],
        "instances": [instances.instance_json(info) for info in scene.live],
        "total": {"logical": scene.logical, "stored": scene.stored},
    }
    return Answer(data, lambda out: paint(out, scene, fold=not every, ascii_only=plain))


def look(app: App) -> Scene:
    """Read what the picture shows: snapshots, names, sizes, live programs."""
    from ijfs.live.client.api import list_instances

    repository = app.repository()
    history = views.History.of(repository)
    stats = repository.stats()
    stored = stats.pack_bytes + stats.index_bytes + stats.journal_bytes
    live = [info for info in list_instances(app.repository_path) if info.status != "exited"]
    return Scene(str(app.repository_path), history, stored, live)


def _node_json(scene: Scene, snapshot: Snapshot) -> dict[str, Any]:
    return {
        **scene.history.json(snapshot),
        "logical": snapshot.size,
        "added": snapshot.added,
        "live": [info.name for info in scene.at(snapshot.id)],
    }


def paint(out: Printer, scene: Scene, *, fold: bool = True, ascii_only: bool = False) -> None:
    """The picture; on a terminal with what to type next below it."""
    unicode = out.unicode and not ascii_only
    for line in drawing.picture(drawn(scene), width=out.width, unicode=unicode, fold=fold):
        spans: list[Span] = [(content, STYLES.get(style, "")) for content, style in line]
        out.line(*spans)
    if not scene.history.snapshots and not scene.live:
        out.line(("nothing here yet: `ijfs run` or `ijfs kernel start`, then `ijfs save`", "dim"))
    elif out.terminal:
        _legend(out, scene)


def drawn(scene: Scene) -> drawing.Scene:
    """What the picture shows, as the drawing takes it."""
    labels = scene.history.labels
    snapshots = [
        drawing.Snap(
            s.id.hex(),
            [parent.hex() for parent in scene.history.parents[s.id]],
            s.created_ns,
            s.message,
            instances.name_of(s),
            s.size,
            s.added,
            labels.branches.get(s.id, ()),
            labels.tags.get(s.id, ()),
        )
        for s in scene.history.snapshots.values()
    ]
    live = [drawing.LiveProgram(i.name, i.snapshot, i.memory) for i in scene.live]
    return drawing.Scene(text.place(scene.path), snapshots, live, scene.stored)


def _legend(out: Printer, scene: Scene) -> None:
    """How to go on from what is drawn: with a name that is on it."""
    named = [name for names in scene.history.labels.branches.values() for name in names]
    live = next((info.name for info in scene.live if info.name in named), None)
    if live is not None:
        out.line()
        said = f"back: ijfs restore {live}~1 --replace · files: ijfs ls {live} · a copy beside it: ijfs fork {live}"
        out.line((text.clip(said, out.width or len(said)), "dim"))
    elif named:
        out.line()
        out.line((text.clip(f"to life again: ijfs restore {named[0]}", out.width or 80), "dim"))


COMMANDS = {"tree": tree}
