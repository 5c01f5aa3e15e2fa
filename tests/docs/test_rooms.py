"""The picture of all rooms (docs/internals/pictures/rooms.dot) beside the imports: what it draws is so, and what it
does not draw is small, or said to be left out."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import ijfs_engine

ROOT = Path(__file__).resolve().parents[2]
PICTURE = (ROOT / "docs/internals/pictures/rooms.dot").read_text()

TOGETHER = {
    **dict.fromkeys(("bases", "uploads", "machine", "doctor", "checks", "process", "model", "errors"), "small"),
    **dict.fromkeys(("_native", "util"), "native"),
}
"""Packages that are one room of the picture."""

NO_ROOMS = {"person", "frontend", "agent", "program"}
"""What is drawn beside the rooms."""

WEIGHT = 4
"""A way that so many modules take is drawn."""

Way = tuple[str, str]


def modules() -> dict[str, Path]:
    """By dotted name."""
    found = {}
    for top, name in ((ROOT / "ijfs", "ijfs"), (ROOT / "engine/ijfs_engine", "ijfs_engine")):
        for path in top.rglob("*.py"):
            parts = path.relative_to(top).with_suffix("").parts
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str | None:
    """The room of the picture that a module is in; None for what lies above all rooms."""
    top, *rest = module.split(".")
    if top == "ijfs" and rest[:1] == ["live"]:
        rest = rest[1:]
    elif module in ("ijfs_engine.errors", "ijfs.__main__"):
        return None
    return TOGETHER.get(rest[0], rest[0]) if rest else None


def imported(path: Path) -> Iterator[str]:
    """The modules that a module imports when it runs."""
    tree = ast.parse(path.read_text())
    typing = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for below in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                below = f"{node.module}.{name.name}"
                if node.module == "ijfs_engine":  # which exports what its rooms have
                    yield f"ijfs_engine.{ijfs_engine._MODULE_OF.get(name.name, 'errors')}"
                else:
                    yield below if below in MODULES else node.module


def ways() -> Counter[Way]:
    """How many modules of one room import something of another."""
    found: Counter[Way] = Counter()
    for module, path in MODULES.items():
        here = room(module)
        there = {room(name) for name in imported(path) if name.split(".")[0] in ("ijfs", "ijfs_engine")}
        found.update((here, other) for other in there if here and other and here != other)
    return found


WAYS = ways()


def drawn() -> dict[Way, str]:
    """Each arrow between rooms with its attributes."""
    found = {}
    for statement in re.sub(r"//.*", "", PICTURE).replace("\n", ";").split(";"):
        line, _, attributes = statement.partition("[")
        if "->" in line:
            stops = [stop.strip() for stop in line.split("->")]
            found |= dict.fromkeys(pairwise(stops), attributes)
    return {way: how for way, how in found.items() if not NO_ROOMS & set(way) and "invis" not in how}


def left_out() -> list[Way]:
    return [(one, other) for one, other in re.findall(r"// +left out: (\S+) -> (\w+): \S", PICTURE)]


def test_every_room_is_in_the_picture() -> None:
    rooms = {one for module in MODULES if (one := room(module)) is not None}
    assert rooms == set(re.findall(r"^ +(\w+) \[label=<", PICTURE, re.MULTILINE)) - NO_ROOMS


def test_every_call_that_is_drawn_is_an_import() -> None:
    solid = {way for way, how in drawn().items() if "dashed" not in how}
    assert len(solid) > 15
    assert solid - WAYS.keys() == set()


def test_every_way_of_some_weight_is_drawn_or_said_to_be_left_out() -> None:
    shown = {*drawn(), *left_out()}
    heavy = {way for way, count in WAYS.items() if count >= WEIGHT}
    assert {way for way in heavy if way not in shown and ("*", way[1]) not in shown} == set()


def test_nothing_is_said_to_be_left_out_that_is_drawn_or_is_no_way_of_weight() -> None:
    for one, other in left_out():
        assert (one, other) not in drawn()
        counts = [count for way, count in WAYS.items() if way[1] == other and one in ("*", way[0])]
        assert max(counts, default=0) >= WEIGHT, f"{one} -> {other}"
