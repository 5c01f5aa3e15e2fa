"""The layout of a repository's picture: which line stands where, and the strokes before it. No terminal, no engine.

Time runs down. The snapshots of one program go straight on in a column, so that the original keeps its line; what
others made of them branches off to the right, drawn before the line goes on. Trees that have nothing to do with each
other stand apart. Long plain stretches, and fans of many like branches, are folded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ijfs.drawing.words import natural

LIVE = -1
"""The lane of all that is live."""

FOLD = 6
"""Plain snapshots in a row that are still drawn one by one."""

FAN = 5
"""Branches of one name (agent-1, agent-2, …) off one snapshot that are still drawn one by one."""

Stroke = tuple[str, int]
"""A piece of line art, and the lane it belongs to: a lane has one colour."""


@dataclass(frozen=True)
class PictureNode:
    """A snapshot as the picture needs it: identity, first parent, age, what hangs on it, and which program made it."""

    id: str
    parent: str | None
    created_ns: int
    labels: Sequence[str] = ()
    live: Sequence[str] = ()
    program: str = ""

    @property
    def name(self) -> str:
        """What a person calls its line."""
        return self.labels[0] if self.labels else self.program


@dataclass(frozen=True)
class Glyphs:
    """The strokes of a picture."""

    snapshot: str
    here: str
    live: str
    fold: str
    fork: str
    corner: str
    pipe: str
    times: str
    dots: str


UNICODE = Glyphs("●", "@", "▶", "⋮", "├─", "└─", "│ ", "×", "…")
ASCII = Glyphs("*", "@", ">", ":", "|-", "`-", "| ", "x", "..")
NAMED = Glyphs("snapshot", "here", "live", "fold", "fork", "corner", "pipe", "times", "dots")
"""For who draws the strokes otherwise; empty columns are spaces."""


@dataclass(frozen=True)
class PictureRow:
    """One line: strokes, and what stands behind them: a snapshot, a folded stretch, a folded fan, or nothing at all
    (between trees)."""

    strokes: Sequence[Stroke] = ()
    node: PictureNode | None = None
    folded: Sequence[PictureNode] = ()
    fan: Sequence[PictureNode] = ()


@dataclass(frozen=True)
class _Place:
    """A snapshot (or a fan of them) still to be drawn: the strokes before it, the strokes before all below it."""

    first: Sequence[Stroke]
    rest: Sequence[Stroke]
    lane: int
    nodes: Sequence[PictureNode]

    def row(self, bullet: str, *, node: PictureNode | None = None, folded: Sequence[PictureNode] = ()) -> PictureRow:
        return PictureRow((*self.first, (bullet, self.lane)), node=node, folded=folded)

    def under(self, node: PictureNode) -> _Place:
        return _Place(self.rest, self.rest, self.lane, (node,))

    def beside(self, nodes: Sequence[PictureNode], lane: int, glyphs: Glyphs, *, last: bool) -> _Place:
        """`last`: nothing of this column follows."""
        turn, follows = (glyphs.corner, " " * len(glyphs.pipe)) if last else (glyphs.fork, glyphs.pipe)
        return _Place((*self.rest, (turn, lane)), (*self.rest, (follows, self.lane)), lane, nodes)


@dataclass
class _Plan:
    """The forest, and for each node which child goes on in its column."""

    children: Mapping[str, list[PictureNode]]
    roots: Sequence[PictureNode]
    newest: dict[str, int] = field(default_factory=dict)
    trunk: set[str] = field(default_factory=set)

    def split(self, node: PictureNode) -> tuple[list[PictureNode], PictureNode | None]:
        """The children that branch off, and the one that goes straight on, if one does."""
        children = self.children.get(node.id, [])
        main = self._main(node, children)
        return _in_order([child for child in children if child is not main]), main

    def _main(self, node: PictureNode, children: Sequence[PictureNode]) -> PictureNode | None:
        """What the program itself did next. Where it did nothing yet, a snapshot that is the head of something keeps
        its line to itself, and any other leads on to the oldest that came of it."""
        chosen = [child for child in children if child.id in self.trunk]
        own = chosen or [child for child in children if child.program == node.program]
        if own:
            return max(own, key=lambda child: (self.newest[child.id], child.id))
        if node.labels or node.live or not children:
            return None
        return min(children, key=lambda child: (child.created_ns, child.id))

    def stretch(self, node: PictureNode) -> list[PictureNode]:
        """From here through plain snapshots (one child, no label, nothing live) to the first that is not."""
        stretch = [node]
        while len(children := self.children.get(node.id, [])) == 1 and not node.labels and not node.live:
            node = children[0]
            stretch.append(node)
        return stretch

    def fans(self, sides: Sequence[PictureNode]) -> list[Sequence[PictureNode]]:
        """The branches, those of one name that end at once taken together where they are many."""
        found: list[Sequence[PictureNode]] = []
        for _, group in itertools.groupby(sides, key=lambda node: (stem(node.name), node.id in self.children)):
            nodes = list(group)
            ends = nodes[0].id not in self.children
            found += [tuple(nodes)] if ends and len(nodes) > FAN else [(node,) for node in nodes]
        return found


def draw(
    nodes: Iterable[PictureNode], *, trunk: str | None = None, glyphs: Glyphs = UNICODE, fold: bool = True
) -> Iterator[PictureRow]:
    """Rows from top to bottom. `trunk`: a snapshot whose line of ancestors stays in the first column."""
    plan = _plan({node.id: node for node in nodes}, trunk)
    lanes = itertools.count(len(plan.roots))
    for lane, root in enumerate(plan.roots):
        if lane:
            yield PictureRow()
        yield from _tree(plan, _Place((), (), lane, (root,)), lanes, glyphs, fold=fold)


def _tree(plan: _Plan, root: _Place, lanes: Iterator[int], glyphs: Glyphs, *, fold: bool) -> Iterator[PictureRow]:
    todo = [root]
    while todo:
        place = todo.pop()
        if len(place.nodes) > 1:
            yield PictureRow((*place.first, (glyphs.fold, place.lane)), fan=place.nodes)
            continue
        (node,) = place.nodes
        stretch = plan.stretch(node) if fold else []
        yield place.row(glyphs.snapshot, node=node)
        if len(stretch) > FOLD:
            place = place.under(stretch[-1])
            yield place.row(glyphs.fold, folded=stretch[1:-1])
            todo.append(place)
            continue
        sides, main = plan.split(node)
        if main is not None:
            todo.append(place.under(main))
        groups = plan.fans(sides) if fold else [(side,) for side in sides]
        ends = [main is None and group is groups[-1] for group in groups]
        beside = [place.beside(g, next(lanes), glyphs, last=end) for g, end in zip(groups, ends)]  # noqa: B905 - 3.9
        todo.extend(reversed(beside))


def stem(name: str) -> str:
    """A name without the number that tells it from its siblings: agent of agent-12."""
    return re.sub(r"[-._]?[0-9]+$", "", name)


def _in_order(siblings: Sequence[PictureNode]) -> list[PictureNode]:
    """Oldest first, but names that a number tells apart stand together, in the order of the numbers."""
    first: dict[str, int] = {}
    for node in siblings:
        first.setdefault(stem(node.name), node.created_ns)
    return sorted(siblings, key=lambda n: (first[stem(n.name)], natural(n.name), n.created_ns, n.id))


def _plan(nodes: dict[str, PictureNode], trunk: str | None) -> _Plan:
    children: dict[str, list[PictureNode]] = {}
    roots = []
    for node in sorted(nodes.values(), key=lambda n: (n.created_ns, n.id)):
        if node.parent is not None and node.parent in nodes:
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
