"""A record's meta as JSON can hold it, whatever it is. Called by the mount's meta.json and by `ijfs show`."""

from __future__ import annotations

import math
from typing import Any


def plain(meta: Any) -> Any:
    """Bytes as hex, keys as text, other strangers as their str(). Meta is not deep: the engine sees to that."""
    if isinstance(meta, dict):
        return {key if isinstance(key, str) else str(plain(key)): plain(value) for key, value in meta.items()}
    if isinstance(meta, list | tuple):
        return [plain(value) for value in meta]
    if isinstance(meta, bytes):
        return meta.hex()
    known = isinstance(meta, str | int | bool | None) or (isinstance(meta, float) and math.isfinite(meta))
    return meta if known else str(meta)
