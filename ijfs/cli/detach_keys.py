"""The keys that leave a program's terminal without ending the program, written as docker writes them."""

from __future__ import annotations

import re

FORM = re.compile(r"(?:ctrl-[a-z@\[\\\]^_]|[^,])(?:,(?:ctrl-[a-z@\[\\\]^_]|[^,]))*", re.IGNORECASE | re.ASCII)


def bytes_of(text: str) -> bytes:
    """`ctrl-p,ctrl-q`, `ctrl-],x` as a terminal sends it. ValueError for what is no list of keys."""
    if not FORM.fullmatch(text) or not text.isascii():
        raise ValueError(f"'{text}' is no list of keys: `ctrl-p,ctrl-q`, a letter or ctrl- and one of a-z @ [ \\ ] ^ _")
    return bytes(ord(key[-1].upper()) & 0x1F if len(key) > 1 else ord(key) for key in text.split(","))


class DetachKeys:
    """Finds the keys in what is typed. A first part of them is held back until the next key shows what it was."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What goes to the program, and whether the keys were typed; nothing after them counts."""
        data = self._held + typed
        at = data.find(self._keys)
        if at >= 0:
            self._held = b""
            return data[:at], True
        keep = next((n for n in range(len(self._keys) - 1, 0, -1) if data.endswith(self._keys[:n])), 0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep], False
