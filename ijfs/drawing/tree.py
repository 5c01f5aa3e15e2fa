"""What stands on the lines of a repository's picture: snapshots with their names, what lives on them, age and sizes.

`picture` makes lines of styled pieces, fitted to a width; the command line colours them, `render` makes text and HTML.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ijfs.drawing import words
from ijfs.drawing.layout import ASCII, LIVE, UNICODE, Glyphs, PictureNode, PictureRow, draw

COLUMN = 10
"""Width of each column at the right: no age or size is wider than nine."""
MIN_MESSAGE = 8
"""Columns of a message that even a narrow terminal shows."""
MANY = 3
"""Programs on one snapshot that are still named one by one."""

Piece = tuple[str, str]
"""A text, and its style: id, branch, tag, live, dim, strong, lane0 to lane5, or nothing."""
Line = list[Piece]
"""Pieces."""


@dataclass(frozen=True)
class Drawn:
    """A line of the picture, and the snapshot (hex) that it shows, where it shows one."""

    line: Line
    snapshot: str | None = None


@dataclass(frozen=True)
class Snap:
    """A snapshot, as much of it as the picture shows; sizes None where its record does not say."""

    id: str
    parents: Sequence[str]
    created_ns: int
    message: str = ""
    program: str = ""
    size: int | None = None
    added: int | None = None
    branches: Sequence[str] = ()
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class LiveProgram:
    """A live program, and the snapshot that it stands on."""

    name: str
    snapshot: str | None = None
    memory: float = 1.0


@dataclass(frozen=True)
class Scene:
    """All that the picture shows. `here`: the snapshot that the program stands on which asks for the picture."""

    path: str
    snapshots: Sequence[Snap]
    live: Sequence[LiveProgram] = ()
    stored: int | None = None
    here: str | None = None
    by_id: dict[str, Snap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id.update((snap.id, snap) for snap in self.snapshots)

    @classmethod
    def of_answer(cls, answer: Mapping[str, Any]) -> Scene:
        """What a keeper says to `log`; one of another version may leave things out."""
        snapshots = [_snap(found, answer) for found in answer.get("snapshots", ())]
        live = [LiveProgram(one["name"], one.get("snapshot"), one.get("memory", 1.0)) for one in answer.get("live", ())]
        return cls(answer.get("repository", ""), snapshots, live, answer.get("stored"), answer.get("here"))

    @property
    def logical(self) -> int:
        """What all snapshots hold."""
        return sum(snap.size or 0 for snap in self.snapshots)

    def on(self, ident: str) -> list[LiveProgram]:
        """The live programs that stand on a snapshot, agent-2 before agent-10."""
        found = [one for one in self.live if one.snapshot == ident]
        return sorted(found, key=lambda one: words.natural(one.name))


def _snap(found: Mapping[str, Any], answer: Mapping[str, Any]) -> Snap:
    return Snap(
        found["id"],
        tuple(found.get("parents", ())),
        int(found.get("created_ns", 0)),
        str(found.get("message", "")),
        str(found.get("program", "")),
        found.get("size"),
        found.get("added"),
        *(
            tuple(sorted(name for name, at in answer.get(kind, {}).items() if at == found["id"]))
            for kind in ("branches", "tags")
        ),
    )


def rows_of(scene: Scene, glyphs: Glyphs, *, fold: bool) -> list[PictureRow]:
    """Which snapshot stands on which line, and the strokes before it."""
    return list(draw(_nodes(scene), trunk=_trunk(scene), glyphs=glyphs, fold=fold))


def picture(
    scene: Scene, *, width: int | None = None, unicode: bool = True, fold: bool = True, now_ns: int | None = None
) -> list[Line]:
    """The whole picture, with what it adds up to above it; at most `width` columns wide where that is possible."""
    return [row.line for row in picture_rows(scene, width=width, unicode=unicode, fold=fold, now_ns=now_ns)]


def picture_rows(
    scene: Scene, *, width: int | None = None, unicode: bool = True, fold: bool = True, now_ns: int | None = None
) -> list[Drawn]:
    """The same, with the snapshot that each line shows: for who lets a person choose one."""
    glyphs = UNICODE if unicode else ASCII
    now_ns = time.time_ns() if now_ns is None else now_ns
    rows = [_Row.of(scene, row, glyphs, now_ns) for row in rows_of(scene, glyphs, fold=fold)]
    shown = _columns_shown(rows, width)
    left = _left_width(rows, width, shown)
    found = [Drawn(line) for line in [*_headline(scene, glyphs, width), []]]
    if rows:
        found.append(
            Drawn(_with_columns([("", "")], left, [(title, "dim") for title in ("AGE", "HOLDS", "NEW")[:shown]]))
        )
    found += [Drawn(row.fitted(left, shown), row.snapshot) for row in rows]
    unsaved = [one for one in scene.live if one.snapshot not in scene.by_id]
    if unsaved and rows:
        found.append(Drawn([]))
    return found + [Drawn([(f"{glyphs.live} {one.name}", "live"), ("  not saved yet", "dim")]) for one in unsaved]


def log_lines(scene: Scene, *, now_ns: int | None = None) -> list[Line]:
    """One line a snapshot, in the order given."""
    now_ns = time.time_ns() if now_ns is None else now_ns
    return [
        [
            ("@ " if snap.id == scene.here else "  ", "strong"),
            (snap.id[: words.SHORT_ID], "id"),
            (f"  {words.age(snap.created_ns, now_ns):>7}  ", "dim"),
            _subject(snap),
            *_labels(snap),
        ]
        for snap in scene.snapshots
    ]


def _headline(scene: Scene, glyphs: Glyphs, width: int | None) -> list[Line]:
    counts = [
        words.count(len(scene.snapshots), "snapshot"),
        words.count(sum(len(snap.branches) for snap in scene.snapshots), "branch", "branches"),
        f"{len(scene.live)} live",
    ]
    said = ", ".join(counts)
    lines: list[Line] = [[(scene.path, "strong")]]
    if not (scene.snapshots and scene.stored):
        return [*lines, [(said, "dim")]]
    times = f"{scene.logical / scene.stored:.1f}{glyphs.times}"
    held = f"{words.size(scene.logical)} held in {words.size(scene.stored)} ({times})"
    if width is None or len(said) + 2 + len(held) <= width:
        return [*lines, [(f"{said}: {held}", "dim")]]
    return [*lines, [(said, "dim")], [(held, "dim")]]


def _nodes(scene: Scene) -> Iterable[PictureNode]:
    for snap in scene.snapshots:
        parent = next((p for p in snap.parents if p in scene.by_id), None)
        live = tuple(one.name for one in scene.on(snap.id))
        yield PictureNode(snap.id, parent, snap.created_ns, (*snap.branches, *snap.tags), live, snap.program)


def _trunk(scene: Scene) -> str | None:
    """`main` stays in the first column, where there is one."""
    return next((snap.id for snap in scene.snapshots if "main" in snap.branches), None)


@dataclass(frozen=True)
class _Row:
    """One line in parts: what may not be cut, the message that may, what follows it, the columns at the right."""

    head: Sequence[Piece]
    message: Piece = ("", "")
    tail: Sequence[Piece] = ()
    right: Sequence[Piece] = ()
    snapshot: str | None = None

    @classmethod
    def of(cls, scene: Scene, row: PictureRow, glyphs: Glyphs, now_ns: int) -> _Row:
        strokes = [(s, "live" if lane == LIVE else f"lane{lane % 6}") for s, lane in row.strokes]
        if row.fan:
            return cls(strokes, *_fan(scene, row.fan, glyphs, now_ns))
        if row.node is None:
            more = f" {words.count(len(row.folded), 'more snapshot')}"
            return cls([*strokes, (more, "dim")] if row.folded else strokes)
        snap = scene.by_id[row.node.id]
        if snap.id == scene.here:
            strokes[-1] = (glyphs.here, "strong")
        head = [*strokes, (f" {snap.id[: words.SHORT_ID]}", "id"), ("  ", "")]
        tail = _tail(snap, scene.on(snap.id), glyphs)
        sizes = [("–" if n is None else words.size(n), "") for n in (snap.size, snap.added)]
        right = [(words.age(snap.created_ns, now_ns), "dim"), *sizes]
        return cls(head, _subject(snap), tail, right, snap.id)

    def width(self) -> int:
        """Columns the left part would like."""
        return sum(words.cells(content) for content, _ in [*self.head, self.message, *self.tail])

    def least(self) -> int:
        """Columns that the left part needs."""
        subject = words.cells(self.message[0])
        return self.width() - subject + min(MIN_MESSAGE, subject)

    def fitted(self, width: int, columns: int) -> Line:
        """The line with its message cut to what is left of `width`, and that many columns behind it."""
        subject, style = self.message
        room = max(width - (self.width() - words.cells(subject)), 0)
        cut = words.clip(subject, max(room, min(MIN_MESSAGE, words.cells(subject))))
        left = [*self.head, (cut, style), *self.tail]
        return _with_columns(left, width, self.right[:columns]) if self.right else left


def _subject(snap: Snap) -> Piece:
    subject = words.first_line(snap.message)
    if not subject:
        return ("(no message)", "dim")
    return (subject, "strong" if snap.branches or snap.tags else "")


def _labels(snap: Snap) -> list[Piece]:
    """Branches in brackets, tags in parentheses."""
    found: list[Piece] = []
    for names, form, style in ((snap.branches, "[{}]", "branch"), (snap.tags, "({})", "tag")):
        for name in names:
            found += [(" " if found else "  ", ""), (form.format(words.printable(name)), style)]
    return found


def _tail(snap: Snap, live: Sequence[LiveProgram], glyphs: Glyphs) -> list[Piece]:
    """The names of a snapshot, and what lives on it: a program of a branch's name is a mark behind that branch."""
    own = [one for one in live if one.name in snap.branches]
    found: list[Piece] = []
    for piece in _labels(snap):
        found.append(piece)
        for one in own:
            if piece == (f"[{one.name}]", "branch"):
                found += [(" ", ""), (glyphs.live + _not_all_in(one), "live")]
    return found + _live([one for one in live if one not in own], glyphs)


def _live(programs: Sequence[LiveProgram], glyphs: Glyphs) -> list[Piece]:
    if not programs:
        return []
    names = ", ".join(one.name + _not_all_in(one) for one in programs)
    if len(programs) > MANY:
        names = f"{programs[0].name} {glyphs.dots} {programs[-1].name} ({len(programs)} live)"
    return [("  ", ""), (f"{glyphs.live} {names}", "live")]


def _not_all_in(one: LiveProgram) -> str:
    return f" {one.memory:.0%} in" if one.memory < 1 else ""


def _fan(
    scene: Scene, nodes: Sequence[PictureNode], glyphs: Glyphs, now_ns: int
) -> tuple[Piece, Sequence[Piece], Sequence[Piece]]:
    """Many branches of one name, as one line: how many, from which to which, what they took together."""
    snaps = [scene.by_id[node.id] for node in nodes]
    live = [one for snap in snaps for one in scene.on(snap.id)]
    sizes = [sum(snap.size or 0 for snap in snaps), sum(snap.added or 0 for snap in snaps)]
    message = f" {len(nodes)} branches: {nodes[0].name} {glyphs.dots} {nodes[-1].name}"
    tail = _live(live, glyphs) if len(live) <= MANY else [("  ", ""), (f"{glyphs.live} {len(live)} live", "live")]
    age = words.age(min(snap.created_ns for snap in snaps), now_ns)
    return (message, "strong"), tail, [(age, "dim"), *((words.size(n), "") for n in sizes)]


def _with_columns(left: Sequence[Piece], width: int, right: Sequence[Piece]) -> Line:
    """The left part, filled up, then age, size and new bytes, each at the right of its column."""
    used = sum(words.cells(content) for content, _ in left)
    line = [*left, (" " * max(width - used, 0), "")]
    for content, style in right:
        line += [(" " * max(COLUMN - words.cells(content), 1), ""), (content, style)]
    return line


def _columns_shown(rows: Sequence[_Row], width: int | None) -> int:
    """All three columns at the right, or what leaves room for the rest: age and size, or age alone."""
    if width is None:
        return 3
    least = max((row.least() for row in rows), default=0)
    wanted = max(least, min(40, max((row.width() for row in rows), default=0)))
    return next((count for count in (3, 2) if wanted + COLUMN * count <= width), 1)


def _left_width(rows: Sequence[_Row], width: int | None, columns: int) -> int:
    wanted = max((row.width() for row in rows if row.right), default=0)
    return wanted if width is None else min(wanted, max(width - COLUMN * columns, 20))
