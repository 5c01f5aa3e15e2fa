"""What a person says of sizes and limits, as `512M` or `4G`: in a variable, a setting, an argument."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from ijfs.live.model.records import Limits
from ijfs_engine.errors import IjfsError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(variable: str, text: str) -> int:
    """Bytes, from `512M`, `4G`, `1048576`. IjfsError."""
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise IjfsError(f"{variable} is `{text}`, which is no size", hint="say it as 512M or 4G")
    return int(found[1]) * _UNITS[found[2].upper()]


def parse_limits(said: Mapping[str, str | float | None]) -> Limits:
    """Limits by the names that they have in records.Limits: `{"memory": "4G", "cpus": 2}`; `none` is no limit, and
    nothing is said by None and "". IjfsError."""
    given = {name: _limit(name, value) for name, value in said.items() if value not in (None, "")}
    return msgspec.convert(given, Limits)


def _limit(name: str, value: str | float | None) -> float:
    if value == "none":
        return 0
    if isinstance(value, int | float):
        return value
    if name in ("memory", "io"):
        return parse_size(name, str(value))
    try:
        return float(str(value)) if name == "cpus" else int(str(value))
    except ValueError:
        raise IjfsError(f"{name} is `{value}`, which is no number") from None
