"""What variables a kernel has: name, type, shape, size, and a digest to compare them by. Standard library only.

Called in a kernel by the cell that ijfs.jupyter.variables runs there; prints JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
import types
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 1 << 30
"""Of an array that is hashed: a second's work."""
MOST_PICKLED = 64 << 20
HIDDEN = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
SKIPPED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
"""What is defined rather than computed."""


def show(namespace: Mapping[str, Any]) -> None:
    """Print them."""
    print(json.dumps([described(name, value) for name, value in sorted(namespace.items()) if is_shown(name, value)]))


def is_shown(name: str, value: Any) -> bool:
    """Whether a person would call it a variable."""
    return not (name.startswith("_") or name in HIDDEN or isinstance(value, SKIPPED))


def described(name: str, value: Any) -> dict[str, Any]:
    """What is told of one."""
    kind = type(value)
    package = "" if kind.__module__ == "builtins" else kind.__module__.partition(".")[0] + "."
    return {
        "name": name,
        "type": package + kind.__qualname__,
        "shape": _shape(value),
        "size": _size(value),
        "digest": _digest(value),
    }


def _shape(value: Any) -> list[int] | None:
    try:
        found = getattr(value, "shape", None)
        return [len(value)] if found is None else [int(length) for length in found]
    except Exception:  # whatever an object's own code raises
        return None


def _size(value: Any) -> int | None:
    try:
        usage = getattr(value, "memory_usage", None)
        if callable(usage):
            used = usage(deep=False)
            return int(used.sum() if hasattr(used, "sum") else used)
        return int(getattr(value, "nbytes", None) or sys.getsizeof(value))
    except Exception:
        return None


def _digest(value: Any) -> str | None:
    """None for what has no bytes to compare by: a lock, a large object, one that cannot be pickled."""
    try:
        return _of_array(value) if _is_array(value) else _of_pickle(value)
    except Exception:
        return None


def _is_array(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "flags") and not value.dtype.hasobject


def _of_array(value: Any) -> str | None:
    if value.nbytes > MOST_BYTES or not value.flags.c_contiguous:
        return None
    found = hashlib.blake2b(repr((value.shape, value.dtype.str)).encode(), digest_size=16)
    found.update(memoryview(value).cast("B"))
    return found.hexdigest()


def _of_pickle(value: Any) -> str:
    out = _Hashed()
    pickle.Pickler(out, protocol=4).dump(value)
    return out.hash.hexdigest()


class _Hashed(io.RawIOBase):
    """Takes bytes, up to a limit, and keeps their hash alone."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self._left = MOST_PICKLED

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self._left -= length
        if self._left < 0:
            raise ValueError("too large")
        self.hash.update(data)
        return length
