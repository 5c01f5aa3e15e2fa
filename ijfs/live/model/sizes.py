"""A size that a variable says, as `512M` or `4G`: for arena_pool.py and host_folders.py."""

from __future__ import annotations

import re

from ijfs_engine.errors import IjfsError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(variable: str, text: str) -> int:
    """Bytes, from `512M`, `4G`, `1048576`. IjfsError."""
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise IjfsError(f"{variable} is `{text}`, which is no size", hint="say it as 512M or 4G")
    return int(found[1]) * _UNITS[found[2].upper()]
