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
    return Answer(data, lambda out: report(out, verdicts), 12 if refused(verdicts) else 0)


def report(out: Printer, verdicts: Sequence[CheckResult]) -> None:
    """One line a check; under those that are not well, the remedy."""
    width = max((text.cells(v.check) for v in verdicts), default=0)
    for v in verdicts:
        glyph, style = MARKS[v.outcome]
        mark = f" {glyph}" if out.unicode else f"{ASCII_MARKS[v.outcome]:<4}"
        out.line((mark, style), f" {v.check:<{width}}  ", (v.evidence, "dim" if v.outcome == "ok" else ""))
        if v.remedy and v.outcome != "ok":
            out.line(" " * (len(mark) + width + 3), ("→ " if out.unicode else "-> ", "cyan"), v.remedy)
    bad, doubtful = (sum(v.outcome == outcome for v in verdicts) for outcome in ("refuse", "warn"))
    out.line()
    if bad:
        out.line((f"{text.count(bad, 'check')} would stop a save", "bold red"))
    elif doubtful:
        out.line((f"nothing is refused; {text.count(doubtful, 'warning')} above", "bold yellow"))
    else:
        out.line(("nothing stands in the way", "bold green"))


COMMANDS = {"doctor": doctor}
