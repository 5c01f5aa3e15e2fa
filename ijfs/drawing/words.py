"""Numbers, times and names as a person reads them: small pure functions. Called by the drawing and by every verb."""

from __future__ import annotations

import re
import time

SHORT_ID = 10
"""Hex digits shown of an id: 40 bits, unique in any repository a person reads; all 64 are in --json."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def size(count: float) -> str:
    """Bytes in decimal units with three significant digits: 999 B, 1.25 MB, 48.1 MB, 313 MB."""
    value = float(count)
    unit = 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{int(count)} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def age(then_ns: int, now_ns: int | None = None) -> str:
    """How long ago a moment (ns since the epoch) was, in one unit: now, 12 s, 3 min, 5 h, 9 d, or a date."""
    elapsed = ((time.time_ns() if now_ns is None else now_ns) - then_ns) // 1_000_000_000
    if elapsed < 2:
        return "now"
    for limit, divisor, unit in (
        (100, 1, "s"),
        (100 * 60, 60, "min"),
        (48 * 3600, 3600, "h"),
        (60 * 86400, 86400, "d"),
    ):
        if elapsed < limit:
            return f"{elapsed // divisor} {unit}"
    return time.strftime("%Y-%m-%d", time.localtime(then_ns / 1e9))


def iso(then_ns: int) -> str:
    """UTC, RFC 3339 with milliseconds: what --json prints."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(then_ns // 1_000_000_000))
    return f"{stamp}.{then_ns // 1_000_000 % 1000:03d}Z"


def short(object_id: bytes) -> str:
    """The first digits of an id, as shown to a person."""
    return object_id.hex()[:SHORT_ID]


def count(number: int, noun: str, plural: str | None = None) -> str:
    """1 snapshot, 2 snapshots, 12,000 pages."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def natural(name: str) -> list[tuple[bool, int, str]]:
    """What to sort names by, so that agent-2 comes before agent-10."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", name) if part
    ]


def printable(text: str) -> str:
    """Text from a repository or a program with control characters made visible.

    A message or file name may hold escape sequences; a terminal must never run them.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in text)


def first_line(message: str) -> str:
    """The subject of a snapshot's message, safe to print."""
    lines = message.strip().splitlines()
    return printable(lines[0]) if lines else ""


def cells(text: str) -> int:
    """Terminal columns a text takes (wide and combining characters counted rightly)."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clip(text: str, width: int) -> str:
    """Text cut to a number of terminal columns, with an ellipsis where something is left out."""
    if cells(text) <= width:
        return text
    kept = text[: max(width - 1, 0)]
    while cells(kept) > max(width - 1, 0):
        kept = kept[:-1]
    return kept.rstrip() + "…" if width > 0 else ""
