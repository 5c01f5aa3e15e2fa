"""`ijfs doctor`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ijfs.cli import far_host, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import ANY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ijfs.live.checks.result import CheckResult

MARKS = {"ok": ("✓", "green"), "warn": ("!", "bold yellow"), "refuse": ("✗", "bold red"), "unknown": ("?", "cyan")}
ASCII_MARKS = {"ok": "ok", "warn": "warn", "refuse": "FAIL", "unknown": "?"}


MEANS = {
    "machine": "nothing can be saved here until that is mended",
    "program": "it cannot be saved as it is",
    "snapshot": "it cannot be restored here as it is",
    "provider": "what moves and reads snapshots works all the same",
}

ONLY_VERBOSE = ("spare",)
"""What is no check: shown with -v."""


@verb("doctor")
@click.argument("target", metavar="[PID|NAME|SNAPSHOT]", required=False, type=ANY)
@click.option("--on", "host", metavar="HOST", help="Ask HOST, by ssh, whether SNAPSHOT would come back there.")
@far_host.options
@click.option("--provider", is_flag=True, help="What kind of machine or container this is, and what ijfs can do in it.")
@click.option("--needs", "asked", is_flag=True, hidden=True)
def doctor(
    app: App, target: str | None, host: str | None, transport: str, program: str, provider: bool, asked: bool
) -> Answer:
    """Check this machine, or with PID or NAME one program, for what would stand in the way of a save; or a SNAPSHOT,
    for whether it would come back on this machine, or with --on on another one: nothing of it is sent there.

    Exit code 12 if anything does; each line that is not ✓ says what to do about it.
    """
    from ijfs.live import doctor as checks

    if target is not None and (provider or asked):
        raise click.UsageError("--provider looks at this machine, and takes no name")
    if host is not None:
        if target is None:
            raise click.UsageError("--on asks another machine about a snapshot: say which")
        return _answer(app, target, "snapshot", far_host.FarHost(transport, host, program).fits(app, target), host)
    if provider:
        return _answer(app, None, "provider", checks.provider(app.repository_path))
    if asked:
        return _answer(app, None, "snapshot", checks.needed(app.repository_path, sys.stdin.read()))
    if target is None:
        return _answer(app, None, "machine", checks.machine(app.repository_path))
    what, verdicts = checks.named(app.repository_path, target)
    return _answer(app, target, what, verdicts)


def _answer(
    app: App, target: str | None, what: str, verdicts: Sequence[CheckResult], host: str | None = None
) -> Answer:
    from ijfs.live.checks.result import refused

    data = {"target": target, "host": host, "verdicts": [as_json(v) for v in verdicts]}
    shown = [v for v in verdicts if app.verbose or v.check not in ONLY_VERBOSE]
    return Answer(data, lambda out: report(out, shown, what, host), 12 if refused(verdicts) else 0)


def as_json(verdict: CheckResult) -> dict[str, str]:
    """A verdict as every verb's JSON has it."""
    return {name: getattr(verdict, name) for name in verdict.__struct_fields__}


def report(out: Printer, verdicts: Sequence[CheckResult], what: str = "machine", host: str | None = None) -> None:
    """One line a check; under those that are not well, the remedy. What is long goes on below where it began. `what`
    was looked at: a machine, a program, a snapshot; on another `host` than this, where that is given."""
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
    _conclude(out, verdicts, what, host)


def _wrapped(out: Printer, sentence: str, indent: int) -> list[str]:
    if out.width is None:
        return [sentence]
    import textwrap

    return textwrap.wrap(sentence, max(out.width - indent, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _conclude(out: Printer, verdicts: Sequence[CheckResult], what: str, host: str | None) -> None:
    """What it comes to, and what to type next."""
    bad, doubtful = (sum(v.outcome == outcome for v in verdicts) for outcome in ("refuse", "warn"))
    out.line()
    if bad:
        stopped = "restore" if what == "snapshot" else "save"
        out.line((f"{text.count(bad, 'check')} would stop a {stopped}", "bold red"))
        out.line((f"  {MEANS[what].replace('here', f'on {host}' if host else 'here')}", "dim"))
        return
    if doubtful:
        out.line((f"nothing is refused; {text.count(doubtful, 'warning')} above", "bold yellow"))
    else:
        out.line(("nothing stands in the way", "bold green"))
    if what == "machine":
        out.line(("  next: `ijfs demo` shows it all in a minute; `ijfs kernel start` begins", "dim"))


COMMANDS = {"doctor": doctor}
