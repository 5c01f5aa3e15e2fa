"""Words of messages."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """1 pack, 2 packs, 12,000 chunks."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
