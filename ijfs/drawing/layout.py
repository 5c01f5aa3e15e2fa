"""The layout of `ijfs tree`: which line stands where, and the strokes before it. No terminal, no engine.

Time runs down. A snapshot's main child goes on in the same column; other children, drawn before it, branch
off to the right; live programs hang below the snapshot they came from. Long plain stretches are folded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Strokes = tuple[tuple[str, int], ...]
"""Pieces of line art, each with the lane it belongs to: a lane has one colour."""

LIVE = -1
"""The lane of all that is live."""

FOLD = 6
"""Plain snapshots in a row that are still drawn one by one."""


@dataclass(frozen=True)
class PictureNode:
    """A snapshot as the picture needs it: identity, first parent, age, and what hangs on it."""

    id: bytes
    parent: bytes | None
    created_ns: int
    labels: tuple[str, ...] = ()
    live: tuple[str, ...] = ()


@dataclass(frozen=True)
class Glyphs:
    """The strokes of a picture."""

    snapshot: str
    live: str
    fold: str
    fork: str
    corner: str
    pipe: str


UNICODE = Glyphs("●", "▶", "⋮", "├─", "└─", "│ ")
ASCII = Glyphs("*", ">", ":", "|-", "`-", "| ")


@dataclass(frozen=True)
class PictureRow:
    """One line: strokes, and what stands behind them: a snapshot, a live name, or a folded stretch."""

    strokes: Strokes
    node: PictureNode | None = None
    live: str | None = None
    folded: int = 0


@dataclass(frozen=True)
class _Place:
    """A snapshot still to be drawn: the strokes before it, the strokes before all below it, its lane."""

    first: Strokes
    rest: Strokes
    lane: int
    node: PictureNode

    def row(self, bullet: str, *, node: PictureNode | None = None, folded: int = 0) -> PictureRow:
        return PictureRow((*self.first, (bullet, self.lane)), node=node, folded=folded)

    def under(self, node: PictureNode) -> _Place:
        return _Place(self.rest, self.rest, self.lane, node)

    def beside(self, node: PictureNode, lane: int, glyphs: Glyphs) -> _Place:
        return _Place((*self.rest, (glyphs.fork, lane)), (*self.rest, (glyphs.pipe, self.lane)), lane, node)


@dataclass
class _Plan:
    """The forest, and for each node which child goes on in its column."""

    children: Mapping[bytes, list[PictureNode]]
    roots: Sequence[PictureNode]
    newest: dict[bytes, int] = field(default_factory=dict)
    trunk: set[bytes] = field(default_factory=set)

    def split(self, node: PictureNode) -> tuple[list[PictureNode], PictureNode | None]:
        """The children that branch off, oldest first, and the one that goes straight on."""
        children = self.children.get(node.id, [])
        if not children:
            return [], None
        main = max(children, key=lambda c: (c.id in self.trunk, self.newest[c.id], c.id))
        return [c for c in children if c is not main], main

    def stretch(self, node: PictureNode) -> list[PictureNode]:
        """From here through plain snapshots (one child, no label, nothing live) to the first that is not."""
        stretch = [node]
        while len(children := self.children.get(node.id, [])) == 1 and not node.labels and not node.live:
            node = children[0]
            stretch.append(node)
        return stretch


def draw(
    nodes: Iterable[PictureNode], *, trunk: bytes | None = None, glyphs: Glyphs = UNICODE, fold: bool = True
) -> Iterator[PictureRow]:
    """Rows from top to bottom. `trunk`: a snapshot whose line of ancestors stays in the first column."""
    plan = _plan({node.id: node for node in nodes}, trunk)
    lanes = itertools.count(len(plan.roots))
    todo = [_Place((), (), lane, root) for lane, root in reversed(list(enumerate(plan.roots)))]
    while todo:
        place = todo.pop()
        stretch = plan.stretch(place.node) if fold else []
        if len(stretch) > FOLD:
            yield place.row(glyphs.snapshot, node=place.node)
            place = place.under(stretch[-1])
            yield place.row(glyphs.fold, folded=len(stretch) - 2)
            todo.append(place)
            continue
        yield place.row(glyphs.snapshot, node=place.node)
        sides, main = plan.split(place.node)
        yield from _hanging(place, glyphs, closed=main is None)
        if main is not None:
            todo.append(place.under(main))
        todo.extend(reversed([place.beside(side, next(lanes), glyphs) for side in sides]))


def _hanging(place: _Place, glyphs: Glyphs, *, closed: bool) -> Iterator[PictureRow]:
    """The live programs under a snapshot; the last one turns the corner where nothing else follows."""
    for i, name in enumerate(place.node.live):
        last = closed and i == len(place.node.live) - 1
        stroke = (glyphs.corner if last else glyphs.fork, place.lane)
        yield PictureRow((*place.rest, stroke, (glyphs.live, LIVE)), live=name)


def _plan(nodes: dict[bytes, PictureNode], trunk: bytes | None) -> _Plan:
    children: dict[bytes, list[PictureNode]] = {}
    roots = []
    for node in sorted(nodes.values(), key=lambda n: (n.created_ns, n.id)):
        if node.parent in nodes:
            children.setdefault(node.parent, []).append(node)
        else:
            roots.append(node)
    plan = _Plan(children, roots)
    _date(plan)
    while trunk is not None and trunk in nodes and trunk not in plan.trunk:
        plan.trunk.add(trunk)
        trunk = nodes[trunk].parent
    return plan


def _date(plan: _Plan) -> None:
    """For each node the time of its newest descendant; leaves first, as histories outgrow recursion."""
    order = list(plan.roots)
    for node in order:
        order.extend(plan.children.get(node.id, ()))
    for node in reversed(order):
        plan.newest[node.id] = max([node.created_ns, *(plan.newest[c.id] for c in plan.children.get(node.id, ()))])
