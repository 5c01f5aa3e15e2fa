#!/usr/bin/env python3
"""docs/json.md as a JSON Schema: the tables of that page are its source, `docs/json.schema.json` is what this prints.

    tools/json_schema.py            write docs/json.schema.json
    tools/json_schema.py --check    exit with 1 if it is not what the page says

JSON Schema draft 2020-12. Fields may be added within a version, so unknown ones are allowed.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "json.md"
SCHEMA = DOCS / "json.schema.json"
PLAIN = ("string", "integer", "number", "boolean", "object")
ERRORS = "Errors"
SHARED = "Objects that several verbs share"
"""Sections of the second level that are no verb's."""
NAMED_OTHERWISE = {"branch NAME": ["branch", "tag"], "rm": ["rm", "branch", "tag"]}
"""Sections whose title is not what `verb` says."""


@cache
def tables() -> dict[str, dict[str, str]]:
    """Section title → field → type, with the fields a section takes over from another."""
    found: dict[str, dict[str, str]] = {}
    title = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.match(r"#{2,3} (.+)", line):
            title = heading[1]
            if title in found:
                raise ValueError(f"two sections are called {title}")
            found[title] = {}
        elif inherited := re.match(r"All fields of \[(.+?)\]", line):
            found[title].update(found[inherited[1]])
        elif row := re.match(r"\| `(\w+)` \| ([^|]+?) \|", line):
            found[title][row[1]] = re.sub(r"\[(.+)\]\(.*\)", r"\1", row[2])
    return found


def verbs() -> list[str]:
    """The sections that are what a verb prints."""
    titles = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
    return [title for title in titles if title not in (ERRORS, SHARED, "Examples")]


def schema() -> dict[str, Any]:
    """The page as a schema of any object that a verb prints."""
    found = {title: fields for title, fields in tables().items() if fields}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What `ijfs … --json` prints",
        "anyOf": [_reference(ERRORS), *(_printed(title) for title in verbs() if title in found)],
        "$defs": {_key(title): _object(fields) for title, fields in found.items()},
    }


def _printed(title: str) -> dict[str, Any]:
    """What a verb prints: the object, and which verb it is."""
    said = {"ijfs": {"const": 1}, "verb": {"enum": NAMED_OTHERWISE.get(title, [title])}}
    return {"properties": said, "required": list(said), **_reference(title)}


def _object(fields: dict[str, str]) -> dict[str, Any]:
    properties = {name: _value(kind.rstrip("?")) for name, kind in fields.items()}
    required = [name for name, kind in fields.items() if not kind.endswith("?")]
    return {"type": "object", "properties": properties, "required": required}


def _value(kind: str) -> dict[str, Any]:
    if kind.endswith(" or null"):
        return {"anyOf": [_value(kind.removesuffix(" or null")), {"type": "null"}]}
    if kind.startswith("list of "):
        return {"type": "array", "items": _value(kind.removeprefix("list of "))}
    return {"type": kind} if kind in PLAIN else _reference(kind)


def _reference(title: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{_key(title)}"}


def _key(title: str) -> str:
    """A section's name in a reference, where no space may stand."""
    return title.replace(" ", "-")


def main() -> int:
    """Write or compare; the exit code."""
    text = json.dumps(schema(), indent=1) + "\n"
    if sys.argv[1:] == ["--check"]:
        if SCHEMA.read_text() == text:
            return 0
        print("docs/json.schema.json is not what docs/json.md says: tools/json_schema.py writes it", file=sys.stderr)
        return 1
    SCHEMA.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
