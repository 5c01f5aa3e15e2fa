"""docs/json.md as a checker: the tables of that page, applied to what a verb printed."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from tools import json_schema
from tools.json_schema import tables

PLAIN: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
}


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema.schema())


def check(data: dict[str, Any], section: str) -> None:
    """Assert that an object printed by a verb is what the page says: every field, no other, each of its type."""
    assert data["ijfs"] == 1
    if "verb" in data:
        _validator().validate(data)
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
