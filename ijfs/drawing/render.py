"""Lines of styled pieces as plain text and as HTML that can be read on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ijfs.drawing.words import printable

# Accents that have about the same contrast to a white page as to a black one.
_COLOURS = {
    "id": "color:#b58900",
    "branch": "color:#859900;font-weight:bold",
    "tag": "color:#d33682;font-weight:bold",
    "live": "color:#2aa198;font-weight:bold",
    "dim": "opacity:.6",
    "strong": "font-weight:bold",
    "lane0": "color:#2aa198",
    "lane1": "color:#d33682",
    "lane2": "color:#268bd2",
    "lane3": "color:#cb4b16",
    "lane4": "color:#859900",
    "lane5": "color:#dc322f",
}


def as_text(lines: Iterable[Sequence[tuple[str, str]]]) -> str:
    """One string; what cannot be printed is made visible."""
    return "\n".join(printable("".join(content for content, _ in line)).rstrip() for line in lines)


def as_html(lines: Iterable[Sequence[tuple[str, str]]]) -> str:
    """A <pre> with inline styles: a notebook keeps it without our style sheet."""
    shown = "\n".join("".join(_span(content, style) for content, style in line).rstrip() for line in lines)
    return f'<pre style="line-height:1.35;background:none">{shown}</pre>'


def _span(content: str, style: str) -> str:
    text = escape(printable(content))
    return f'<span style="{_COLOURS[style]}">{text}</span>' if style in _COLOURS and text.strip() else text


class Drawing:
    """What a notebook's cell shows: HTML in a browser, text in a console."""

    def __init__(self, lines: Sequence[Sequence[tuple[str, str]]]) -> None:
        self.lines = lines

    def __repr__(self) -> str:
        return as_text(self.lines)

    def _repr_html_(self) -> str:
        return as_html(self.lines)
