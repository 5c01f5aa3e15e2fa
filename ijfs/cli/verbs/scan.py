"""`ijfs scan`."""

from __future__ import annotations

import re
from dataclasses import asdict

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import SNAPSHOT

COLUMNS = [
    Column("WHAT", style="bold red"),
    Column("WHERE", flex=True),
    Column("AT", right=True),
    Column("BEGINS"),
]

FOUND = 1


@verb("scan")
@click.argument("snapshot", type=SNAPSHOT)
@click.option("--pattern", "patterns", multiple=True, metavar="REGEX", help="Look for this, too.")
def scan(app: App, snapshot: str, patterns: tuple[str, ...]) -> Answer:
    """Look for keys in SNAPSHOT: in the memory of its processes and in the files that were written.

    What looks like a key of AWS, GitHub, OpenAI or Anthropic, a private key or a JSON web token is named with its
    place, and not shown whole. Exit code 1 where there is any.
    """
    from ijfs.history import key_scan

    for pattern in patterns:
        try:
            re.compile(pattern.encode())
        except re.error as error:
            raise click.UsageError(f"--pattern: '{pattern}' is no regular expression: {error}") from error
    repository = app.repository()
    record = repository.snapshot(repository.resolve(snapshot))
    found = list(key_scan.scan(repository.reader(), record, patterns))

    def show(out: Printer) -> None:
        rows = [[one.kind, one.where, f"{one.at:#x}" if one.in_memory else str(one.at), one.shown] for one in found]
        if rows:
            out.table(COLUMNS, rows)
        else:
            out.line((f"nothing in {text.short(record.id)} looks like a key", "dim"))

    return Answer({"snapshot": record.id.hex(), "found": [asdict(one) for one in found]}, show, FOUND if found else 0)


COMMANDS = {"scan": scan}
