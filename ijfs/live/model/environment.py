"""An environment as text that JSON can carry, whatever bytes are in it: of a keeper to be, of a program to be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

INSTANCE_VARIABLE = "IJFS_INSTANCE"
"""In a sandbox: what the instance is called."""

NUMBER_VARIABLE = "IJFS_FORK_NUMBER"
"""In a copy that its program made of itself: which one it is, from 1."""


def packed(environment: Mapping[str, str]) -> str:
    """NUL-separated as /proc/PID/environ has it, each byte a character."""
    entries = (os.fsencode(name) + b"=" + os.fsencode(value) for name, value in environment.items())
    return b"\0".join(entries).decode("latin-1")


def unpacked(text: str) -> dict[str, str]:
    """What was packed."""
    entries = (entry.partition(b"=") for entry in text.encode("latin-1").split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in entries}


def is_text(parts: Iterable[str]) -> bool:
    """Whether arguments, or a name and its value, can be in a record, which is UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for part in parts for character in part)
