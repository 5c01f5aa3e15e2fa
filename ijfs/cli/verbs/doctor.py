"""`ijfs doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ijfs.live.checks.result import CheckResult

MARKS = {"ok": ("✓", "green"), "warn": ("!", "bold yellow"), "refuse": ("✗", "bold red"), "unknown": ("?", "cyan")}
ASCII_MARKS = {"ok": "ok", "warn": "warn", "refuse": "FAIL", "unknown": "?"}


ONLY_VERBOSE = ("spare",)
"""What is no check: shown with -v."""


@verb("doctor")
@click.argument("target", metavar="[PID|NAME]", required=False, type=INSTANCE)
def doctor(app: App, target: str | None) -> Answer:
    """Check this machine, or with PID or NAME one program, for what would stand in the way of a save.

    Exit code 12 if anything does; each line that is not ✓ says what to do about it.
    """
    from ijfs.live import doctor as checks
    from ijfs.live.checks.result import refused

    verdicts = checks.machine(app.repository_path) if target is None else checks.program(app.repository_path, target)
    data = {"target": target, "verdicts": [{f: getattr(v, f) for f in v.__struct_fields__} for v in verdicts]}
    shown = [v for v in verdicts if app.verbose or v.check not in ONLY_VERBOSE]
    return Answer(data, lambda out: report(out, shown, machine=target is None), 12 if refused(verdicts) else 0)


def report(out: Printer, verdicts: Sequence[CheckResult], *, machine: bool = True) -> None:
    """One line a check; under those that are not well, the remedy. What is long goes on below where it began."""
    width = max((text.cells(v.check) for v in verdicts), default=0)
    for v in verdicts:
        glyph, style = MARKS[v.outcome]
        mark = f" {glyph}" if out.unicode else f"{ASCII_MARKS[v.outcome]:<4}"
        indent = len(mark) + width + 3
        first, *rest = _wrapped(out, v.evidence, indent)
        quiet = "dim" if v.outcome == "ok" else ""
        out.line((mark, style), f" {v.check:<{width}}  ", (first, quiet))
        for line in rest:
            out.line(" " * indent, (line, quiet))
        if v.remedy and v.outcome != "ok":
            arrow = "→ " if out.unicode else "-> "
            first, *rest = _wrapped(out, v.remedy, indent + len(arrow))
            out.line(" " * indent, (arrow, "cyan"), first)
            for line in rest:
                out.line(" " * (indent + len(arrow)), line)
    _conclude(out, verdicts, machine=machine)


def _wrapped(out: Printer, sentence: str, indent: int) -> list[str]:
    if out.width is None:
        return [sentence]
    import textwrap

    return textwrap.wrap(sentence, max(out.width - indent, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _conclude(out: Printer, verdicts: Sequence[CheckResult], *, machine: bool) -> None:
    """What it comes to, and what to type next."""
    bad, doubtful = (sum(v.outcome == outcome for v in verdicts) for outcome in ("refuse", "warn"))
    out.line()
    if bad:
        out.line((f"{text.count(bad, 'check')} would stop a save", "bold red"))
        what = "nothing can be saved here until that is mended" if machine else "it cannot be saved as it is"
        out.line((f"  {what}", "dim"))
        return
    if doubtful:
        out.line((f"nothing is refused; {text.count(doubtful, 'warning')} above", "bold yellow"))
    else:
        out.line(("nothing stands in the way", "bold green"))
    if machine:
        out.line(("  next: `ijfs demo` shows it all in a minute; `ijfs kernel start` begins", "dim"))


COMMANDS = {"doctor": doctor}
