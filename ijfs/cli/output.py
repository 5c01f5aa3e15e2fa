"""How a verb's answer reaches standard output: one JSON object, plain text in a pipe, colours on a terminal.

Verbs return an `Answer`; `app.run_verb` prints it. rich is imported only where a terminal with colours is
written to, json where it is asked for: what is not needed does not slow the start.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from ijfs.cli import text

JSON_VERSION = 1
"""The `"ijfs"` field of every JSON object. New fields keep the number, a new meaning raises it."""

MIN_FLEX = 24
"""Columns of a cut text that are worth more than another column."""

Span = str | tuple[str, str]
"""A piece of a line: text, or text with a rich style."""


class Answer(NamedTuple):
    """What a verb found or did: for scripts (`data`), for people (`show`), and the exit code. `names`: what a verb that
    lists prints with -q, a line each."""

    data: Mapping[str, Any]
    show: Callable[[Printer], None] | None = None
    exit_code: int = 0
    names: Sequence[str] = ()


class Column(NamedTuple):
    """A column of a table: heading, alignment, style. On a narrow terminal the column with the highest `drop` goes
    first, one after the other (0: none does), then a `flex` column is cut. An `optional` one is left out if empty."""

    title: str
    right: bool = False
    style: str = ""
    flex: bool = False
    drop: int = 0
    optional: bool = False


class Printer:
    """Writes lines of spans to a stream: styled on a terminal, plain (and never cut) anywhere else."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Standard output, unless it is another one."""
        self.stream = sys.stdout if stream is None else stream
        self._console: Any = None

    @property
    def terminal(self) -> bool:
        """Whether a person reads this as it is written. FORCE_COLOR says yes for a screen recorder."""
        return bool(os.environ.get("FORCE_COLOR")) or (self.stream.isatty() and os.environ.get("TERM") != "dumb")

    @property
    def width(self) -> int | None:
        """Columns to fit in, or None where nothing has to fit."""
        if not self.terminal:
            return None
        import shutil

        return shutil.get_terminal_size((100, 24)).columns

    @property
    def unicode(self) -> bool:
        """Whether lines and bullets can be drawn, or ASCII has to do."""
        return (self.stream.encoding or "ascii").lower().replace("-", "").startswith("utf")

    def line(self, *spans: Span) -> None:
        """One line. Control characters in it are made visible, whatever their origin."""
        parts = [(text.printable(s), "") if isinstance(s, str) else (text.printable(s[0]), s[1]) for s in spans]
        if not self.terminal:
            self.stream.write("".join(part for part, _ in parts).rstrip() + "\n")
            return
        from rich.text import Text

        self._rich().print(Text.assemble(*parts), soft_wrap=True)

    def facts(self, facts: Sequence[str]) -> None:
        """Short facts in a row, dim and indented; on a terminal in as many lines as it takes."""
        line = ""
        for fact in facts:
            longer = f"{line} · {fact}" if line else f"  {fact}"
            if line and self.width is not None and text.cells(longer) > self.width:
                self.line((line, "dim"))
                longer = f"  {fact}"
            line = longer
        self.line((line, "dim"))

    def raw(self, content: str) -> None:
        """Text of another program, as it is."""
        self.stream.write(content)

    def table(
        self, columns: Sequence[Column], rows: Iterable[Sequence[Span | Sequence[Span]]], *, indent: str = ""
    ) -> None:
        """Aligned columns under dim headings; on a terminal the flex column is cut to keep a row one line."""
        body = [[_spans(cell) for cell in row] for row in rows]
        body = [[[(text.printable(s), style) for s, style in cell] for cell in row] for row in body]
        widths = [
            max([text.cells(c.title), *(sum(text.cells(s[0]) for s in row[i]) for row in body)])
            for i, c in enumerate(columns)
        ]
        kept = self._shown(columns, widths, body, len(indent))
        columns, widths = [columns[i] for i in kept], [widths[i] for i in kept]
        body = [[row[i] for i in kept] for row in body]
        self._squeeze(columns, widths, len(indent))
        self.line(indent, *_row([[(c.title, "dim")] for c in columns], columns, widths))
        for row in body:
            self.line(indent, *_row(row, columns, widths))

    def _shown(
        self,
        columns: Sequence[Column],
        widths: Sequence[int],
        body: Sequence[Sequence[list[tuple[str, str]]]],
        taken: int,
    ) -> list[int]:
        """The columns that say something and have room, by number."""
        kept = [i for i, c in enumerate(columns) if not c.optional or any(s for row in body for s, _ in row[i])]
        going = sorted((i for i in kept if columns[i].drop), key=lambda i: -columns[i].drop)
        for i in going if self.width is not None else ():
            needed = taken + sum(min(widths[k], MIN_FLEX) if columns[k].flex else widths[k] for k in kept)
            if needed + 2 * (len(kept) - 1) > (self.width or 0):
                kept.remove(i)
        return kept

    def _squeeze(self, columns: Sequence[Column], widths: list[int], taken: int) -> None:
        if self.width is None:
            return
        surplus = taken + sum(widths) + 2 * (len(widths) - 1) - self.width
        for i, column in enumerate(columns):
            if column.flex and surplus > 0:
                widths[i] = max(widths[i] - surplus, 8)

    def _rich(self) -> Any:
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.stream, highlight=False, markup=False, emoji=False, force_terminal=True)
        return self._console


def _spans(cell: Span | Sequence[Span]) -> list[tuple[str, str]]:
    if isinstance(cell, str):
        return [(cell, "")]
    if isinstance(cell, tuple) and len(cell) == 2 and isinstance(cell[0], str) and isinstance(cell[1], str):
        return [(cell[0], cell[1])]
    return [(s, "") if isinstance(s, str) else s for s in cell]


def _row(row: list[list[tuple[str, str]]], columns: Sequence[Column], widths: Sequence[int]) -> list[Span]:
    spans: list[Span] = []
    for i, (cell, column, width) in enumerate(zip(row, columns, widths, strict=True)):
        fitted = _fit(cell, width)
        pad = " " * (width - sum(text.cells(s) for s, _ in fitted))
        last = i == len(columns) - 1
        spans += [pad] if column.right else []
        spans += [(s, style or column.style) for s, style in fitted]
        spans += ([] if column.right or last else [pad]) + ([] if last else ["  "])
    return spans


def _fit(cell: list[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    fitted = []
    for content, style in cell:
        content = text.clip(content, width)
        width -= text.cells(content)
        fitted.append((content, style))
    return fitted


class OutputError(Exception):
    """Standard output takes no more. What the verb was asked to do is done."""

    hint = "only what should have been printed is lost"
    exit_code = 1


@contextlib.contextmanager
def writing_out() -> Iterator[None]:
    """Tell standard output's errors from all others; a reader that left is its own error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {(error.strerror or str(error)).lower()}") from error


def write_json(data: Mapping[str, Any], stream: TextIO | None = None, *, a_line: bool = False) -> None:
    """One object with the version first; bytes as hex, other strangers as their str(). On a terminal it is indented,
    but for `a_line`: one of many."""
    import json

    stream = stream or sys.stdout
    indent = 2 if stream.isatty() and not a_line else None
    json.dump({"ijfs": JSON_VERSION, **data}, stream, default=_plain, indent=indent)
    stream.write("\n")


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)
