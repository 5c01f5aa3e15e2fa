"""docs/json.md as a checker: the tables of that page, applied to what a verb printed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
PLAIN: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
}


@cache
def tables() -> dict[str, dict[str, str]]:
    """Section title → field → type, with the fields a section takes over from another."""
    found: dict[str, dict[str, str]] = {}
    title = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.match(r"#{2,3} (.+)", line):
            title = heading[1]
            assert title not in found, f"two sections are called {title}"
            found[title] = {}
        elif inherited := re.match(r"All fields of \[(.+?)\]", line):
            found[title].update(found[inherited[1]])
        elif row := re.match(r"\| `(\w+)` \| ([^|]+?) \|", line):
            found[title][row[1]] = re.sub(r"\[(.+)\]\(.*\)", r"\1", row[2])
    return found


def check(data: dict[str, Any], section: str) -> None:
    """Assert that an object printed by a verb is what the page says: every field, no other, each of its type."""
    assert data["ijfs"] == 1
    rest = {key: value for key, value in data.items() if key not in ("ijfs", "verb")}
    _check_object(rest, section, section)


def _check_object(data: dict[str, Any], section: str, where: str) -> None:
    fields = tables()[section]
    assert data.keys() <= fields.keys(), f"{where}: not on the page: {data.keys() - fields.keys()}"
    needed = {name for name, kind in fields.items() if not kind.endswith("?")}
    assert needed <= data.keys(), f"{where}: missing: {needed - data.keys()}"
    for name, value in data.items():
        _check_value(value, fields[name].rstrip("?"), f"{where}.{name}")


def _check_value(value: Any, kind: str, where: str) -> None:
    if kind.endswith(" or null"):
        if value is None:
            return
        kind = kind.removesuffix(" or null")
    if kind.startswith("list of "):
        assert isinstance(value, list), f"{where} is no list: {value!r}"
        for i, item in enumerate(value):
            _check_value(item, kind.removeprefix("list of "), f"{where}[{i}]")
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{where} is no {kind}: {value!r}"
        assert kind == "boolean" or not isinstance(value, bool), f"{where} is a boolean"
    else:
        _check_object(value, kind, where)
