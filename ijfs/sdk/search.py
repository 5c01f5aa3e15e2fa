"""A search over futures of a live program: try every action on a copy, keep the best few, go on from those.

`explore` is a beam search. Copies that fell behind are ended at once, so that no more than `width + at_once` of them
live at a time; what the best of a level have come to is saved, and the next level forks from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ijfs.sdk.box import Box
from ijfs.sdk.forks import discard_all
from ijfs.sdk.snapshots import Snapshot
from ijfs_engine.errors import IjfsError

Action = str | Callable[[Box], object]
"""A cell to run, or a function that does something to a live copy."""

Score = Callable[[Box], float]
"""How good a live copy is; more is better."""


@dataclass(frozen=True)
class Node:
    """A state that was reached: its snapshot, what led to it, how good it is."""

    snapshot: Snapshot
    path: tuple[Action, ...] = ()
    score: float = float("-inf")


Actions = Sequence[Action] | Callable[[Node], Sequence[Action]]
"""What may be done: the same in every state, or what a function says of a state."""


@dataclass
class _Level:
    """The copies of one level that live, best first, at most `width`."""

    width: int
    alive: list[tuple[float, tuple[Action, ...], Box]] = field(default_factory=list)

    def add(self, score: float, path: tuple[Action, ...], box: Box) -> Box | None:
        """Take a copy in; the one that falls out of the best. Of equals the earlier stays before the later."""
        self.alive.append((score, path, box))
        self.alive.sort(key=lambda item: -item[0])
        return self.alive.pop()[2] if len(self.alive) > self.width else None

    def save(self) -> list[Node]:
        """Save and end them all."""
        with ThreadPoolExecutor(max(1, len(self.alive))) as pool:
            snapshots = list(pool.map(lambda item: item[2].save(f"explore: {item[0]:g}"), self.alive))
        nodes = [Node(snapshot, path, score) for (score, path, _), snapshot in zip(self.alive, snapshots, strict=True)]
        self.discard()
        return nodes

    def discard(self) -> None:
        """End them all."""
        discard_all([box for _, _, box in self.alive])
        self.alive.clear()


def explore(
    start: Snapshot | Box,
    actions: Actions,
    score: Score,
    *,
    width: int = 4,
    depth: int = 3,
    at_once: int = 8,
    on_node: Callable[[tuple[Action, ...], float], None] = lambda path, score: None,
) -> Node:
    """The best state that is found within `depth` actions of `start` (a live program is saved first); its snapshot is
    kept by a branch, and its ancestors with it.

    On each level every action is tried on copies of the best `width` states, `at_once` copies at a time, each in a
    thread; `on_node` is told of every one. A copy whose action or score raises an IjfsError or ends its program counts
    for nothing. IjfsError where no action led anywhere.
    """
    root = start if isinstance(start, Snapshot) else start.save("explore: the start")
    beam, reached = [Node(root)], list[Node]()
    for _ in range(depth):
        level = _Level(width)
        try:
            for node in beam:
                _try_all(node, list(actions(node) if callable(actions) else actions), score, level, at_once, on_node)
            beam = level.save()
        finally:
            level.discard()
        reached += beam
    if not reached:
        raise IjfsError("no action led to a state", hint="an action or the score failed in every copy")
    best = max(reached, key=lambda node: node.score)
    _forget_others(reached, best)
    return best


def _try_all(
    node: Node,
    actions: list[Action],
    score: Score,
    level: _Level,
    at_once: int,
    on_node: Callable[[tuple[Action, ...], float], None],
) -> None:
    for first in range(0, len(actions), at_once):
        batch = actions[first : first + at_once]
        boxes = node.snapshot.fork(len(batch))
        done_with = set(boxes)
        try:
            with ThreadPoolExecutor(len(batch)) as pool:
                scores = list(pool.map(lambda pair: _outcome(pair[0], pair[1], score), zip(boxes, batch, strict=True)))
            for box, action, reached in zip(boxes, batch, scores, strict=True):
                if reached is None:
                    continue
                done_with.discard(box)
                fallen = level.add(reached, (*node.path, action), box)
                if fallen is not None:
                    done_with.add(fallen)
                on_node((*node.path, action), reached)
        finally:
            discard_all(list(done_with))


def _outcome(box: Box, action: Action, score: Score) -> float | None:
    try:
        if isinstance(action, str):
            box.run(action)
        else:
            action(box)
        return float(score(box))
    except IjfsError:
        return None


def _forget_others(reached: list[Node], best: Node) -> None:
    """Take away the branches that keep what was not chosen: gc frees it, but for what the best has in common with
    it."""
    for node in reached:
        name = node.snapshot.saved.branch if node.snapshot.saved is not None else None
        if node is not best and name is not None:
            node.snapshot.forget_branch(name)
