"""What the SDK's tests look at outside of it."""

from __future__ import annotations

import os


def pids_of(words: bytes) -> list[int]:
    """Processes with these words on their command line."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if words in file.read().replace(b"\0", b" "):
                        found.append(int(entry))
            except OSError:
                continue
    return found
