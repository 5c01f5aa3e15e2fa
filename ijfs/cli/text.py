"""What the verbs say things with: the words of the drawing (ijfs.drawing.words), and those that only they need."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator

from ijfs.drawing.words import SHORT_ID as SHORT_ID
from ijfs.drawing.words import age as age
from ijfs.drawing.words import cells as cells
from ijfs.drawing.words import clip as clip
from ijfs.drawing.words import count as count
from ijfs.drawing.words import first_line as first_line
from ijfs.drawing.words import iso as iso
from ijfs.drawing.words import natural as natural
from ijfs.drawing.words import printable as printable
from ijfs.drawing.words import short as short
from ijfs.drawing.words import size as size


def seconds(value: float) -> str:
    """A duration with the unit that keeps it short: 840 µs, 73 ms, 1.42 s, 12.3 s, 4 min 10 s."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 100:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def ago(then_ns: int, now_ns: int | None = None) -> str:
    """`age` as a phrase: now, 3 min ago, 2026-01-31."""
    text = age(then_ns, now_ns)
    return text if text == "now" or "-" in text else f"{text} ago"


def moment(then_ns: int) -> str:
    """Local time with its offset, as `date` would write it: 2026-01-31 14:05:09 +0100."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(then_ns / 1e9))


def listing(words: Iterable[str]) -> str:
    """a; a and b; a, b and c."""
    items = list(words)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def ratio(logical: int, stored: int) -> str:
    """How many times more is held than stored: 12.4×, or – where nothing is stored."""
    return f"{logical / stored:.1f}×" if stored else "–"


def file_name(name: str) -> str:
    """A file's name, or path, as it is shown: a backslash is doubled, so that `a\\nb` and `a` newline `b` differ."""
    return name.replace("\\", "\\\\")


def unprintable(shown: str) -> Iterator[bytes]:
    """The names that `printable`, or Python's errors, may have shown like this; none where nothing is escaped."""
    whole = os.fsencode(shown)
    # `\xff` stands for a byte that is not UTF-8; `\x85` may be that or the character of that number.
    for read in (_as_byte, _as_character):
        meant = _ESCAPED.sub(read, whole)
        if meant != whole:
            yield meant


_ESCAPED = re.compile(rb"\\(?:[ntr\\]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5})")


def _as_byte(escape: re.Match[bytes]) -> bytes:
    character = escape[0].decode("unicode_escape")
    return bytes([ord(character)]) if "\x80" <= character <= "\xff" else _as_character(escape)


def _as_character(escape: re.Match[bytes]) -> bytes:
    character = escape[0].decode("unicode_escape")
    return os.fsencode(character) if "\udc80" <= character <= "\udcff" else character.encode("utf-8", "surrogatepass")


def message(given: str) -> str:
    """What was typed as a message, as it can be stored: bytes that are not UTF-8 are made visible."""
    return given.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def place(path: str) -> str:
    """A path for a person: the home directory as ~."""
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if home != "/" and path.startswith(home + "/") else path
