"""`ijfs tree`: the picture of a repository. `ijfs.cli.picture` decides where lines go, this what stands on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import instances, picture, text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer, Span

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo
    from ijfs_engine import Snapshot

LANES = ("cyan", "magenta", "blue", "yellow", "green", "red")
LIVE_STYLE = "bold green"
COLUMN = 10
"""Width of each column at the right: no age or size is wider than nine."""
MIN_MESSAGE = 8
"""Columns of a message that even a narrow terminal shows."""


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
    """Draw snapshots, [branches], (tags) and live programs. Time runs down; a fork branches off to the right.

    SIZE is what a snapshot holds, NEW what storing it took on disk. What only it needs now is what `ijfs du` says.
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
    """The picture, with what it adds up to above it."""
    glyphs = picture.ASCII if ascii_only or not out.unicode else picture.UNICODE
    _headline(out, scene, times="x" if glyphs is picture.ASCII else "×")
    rows = list(picture.draw(_nodes(scene), trunk=_trunk(scene), glyphs=glyphs, fold=fold))
    lines = [_Line.of(scene, row) for row in rows]
    shown = _columns_shown(out)
    width = _left_width(out, lines, shown)
    if lines:
        out.line(*_columns([("", "")], width, [("AGE", "dim"), ("SIZE", "dim"), ("NEW", "dim")][:shown]))
    for line in lines:
        out.line(*line.fitted(width, shown))
    known = {s.hex() for s in scene.history.snapshots}
    for info in scene.live:
        if info.snapshot not in known:
            out.line((glyphs.live + " ", LIVE_STYLE), (info.name, LIVE_STYLE), "  ", *_live_details(info, saved=False))
    if not lines and not scene.live:
        out.line(("nothing here yet: `ijfs run` or `ijfs kernel start`, then `ijfs save`", "dim"))


def _headline(out: Printer, scene: Scene, *, times: str) -> None:
    branches = sum(map(len, scene.history.labels.branches.values()))
    counts = [
        text.count(len(scene.history.snapshots), "snapshot"),
        text.count(branches, "branch", "branches"),
        f"{len(scene.live)} live",
    ]
    held = f"{text.size(scene.logical)} in {text.size(scene.stored)} ({scene.logical / scene.stored:.1f}{times})"
    out.line((text.place(scene.path), "bold"))
    out.line((f"{', '.join(counts)}: {held}" if scene.history.snapshots else ", ".join(counts), "dim"))
    out.line()


def _nodes(scene: Scene) -> Iterable[picture.PictureNode]:
    for s in scene.history.snapshots.values():
        live = tuple(info.name for info in scene.at(s.id))
        parent = next(iter(scene.history.parents[s.id]), None)
        yield picture.PictureNode(s.id, parent, s.created_ns, scene.history.labels.at(s.id), live)


def _trunk(scene: Scene) -> bytes | None:
    """`main` stays in the first column, where there is one."""
    return next((at for at, names in scene.history.labels.branches.items() if "main" in names), None)


@dataclass(frozen=True)
class _Line:
    """One line in parts: what may not be cut, the message that may, what follows it, the columns at the right."""

    head: list[tuple[str, str]]
    message: tuple[str, str]
    tail: list[Span]
    right: list[tuple[str, str]]

    @classmethod
    def of(cls, scene: Scene, row: picture.PictureRow) -> _Line:
        strokes = [(s, LIVE_STYLE if lane < 0 else LANES[lane % len(LANES)]) for s, lane in row.strokes]
        if row.live is not None:
            info = next(info for info in scene.live if info.name == row.live)
            return cls([*strokes, (f" {row.live}", LIVE_STYLE)], ("", ""), ["  ", *_live_details(info)], [])
        if row.node is None:
            return cls([*strokes, (f" {text.count(row.folded, 'more snapshot')}", "dim")], ("", ""), [], [])
        snapshot = scene.history.snapshots[row.node.id]
        labels = scene.history.labels.spans(row.node.id)
        subject = text.first_line(snapshot.message)
        message = (subject, "bold" if labels else "") if subject else ("(no message)", "dim")
        sizes = [("–" if n is None else text.size(n), "") for n in (snapshot.size, snapshot.added)]
        right = [(text.age(snapshot.created_ns), "dim"), *sizes]
        return cls([*strokes, (f" {text.short(row.node.id)}  ", "yellow")], message, ["  ", *labels], right)

    def width(self) -> int:
        """Columns the left part would like."""
        return sum(text.cells(s if isinstance(s, str) else s[0]) for s in [*self.head, self.message, *self.tail])

    def fitted(self, width: int, columns: int) -> list[Span]:
        """The line with its message cut to what is left of `width`, and that many columns behind it."""
        subject, style = self.message
        room = max(width - (self.width() - text.cells(subject)), 0)
        left: list[Span] = [*self.head, (text.clip(subject, max(room, min(MIN_MESSAGE, text.cells(subject)))), style)]
        left += self.tail
        return _columns(left, width, self.right[:columns]) if self.right else left


def _columns(left: Sequence[Span], width: int, right: Sequence[tuple[str, str]]) -> list[Span]:
    """The left part, filled up, then age, size and new bytes, each at the right of its column."""
    used = sum(text.cells(s if isinstance(s, str) else s[0]) for s in left)
    spans: list[Span] = [*left, " " * max(width - used, 0)]
    for content, style in right:
        spans += [" " * max(COLUMN - text.cells(content), 1), (content, style)]
    return spans


def _columns_shown(out: Printer) -> int:
    """All three, or what leaves a narrow terminal room for messages: age and size, or age alone."""
    return 3 if out.width is None or out.width >= 76 else 2 if out.width >= 60 else 1


def _left_width(out: Printer, lines: Sequence[_Line], columns: int) -> int:
    wanted = max((line.width() for line in lines if line.right), default=0)
    return wanted if out.width is None else min(wanted, max(out.width - COLUMN * columns, 20))


def _live_details(info: InstanceInfo, *, saved: bool = True) -> list[Span]:
    parts = [f"{info.status} {text.age(info.created_ns)}"]
    if info.pid:
        parts.append(f"pid {info.pid}")
    if info.memory < 1:
        parts.append(f"{info.memory:.0%} of its memory in")
    if not saved:
        parts.append("not saved yet")
    return [(" · ".join(parts), "green" if info.status == "running" else "red")]


COMMANDS = {"tree": tree}
