"""What this machine's processor is and has, of /proc/cpuinfo: for snapshots, which say it, and who compares it."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path


def model() -> str:
    """How it calls itself; empty where it does not."""
    return _first().get("model name", "")


def flags() -> frozenset[str]:
    """What it has, by the kernel's names."""
    return frozenset(_first().get("flags", "").split())


@functools.cache
def _first() -> dict[str, str]:
    """What is said of the first of its cores."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        pairs = (line.partition(":")[::2] for line in text.splitlines())
        return {name.strip(): value.strip() for name, value in pairs}
    return {}
