"""`ijfs du`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import SNAPSHOT

if TYPE_CHECKING:
    from ijfs_engine import DiskUsage, Snapshot, Usage

COLUMNS = [
    Column("SNAPSHOT", style="yellow"),
    Column("LOGICAL", right=True),
    Column("STORED", right=True),
    Column("UNIQUE", right=True),
    Column("SHARED", right=True),
    Column("MESSAGE", flex=True),
]


@verb("du")
@click.argument("snapshots", nargs=-1, type=SNAPSHOT)
def du(app: App, snapshots: tuple[str, ...]) -> Answer:
    """Say what each snapshot takes: of all, or of SNAPSHOTS compared with one another.

    \b
    LOGICAL  what its files add up to
    STORED   the bytes on disk that it needs
    UNIQUE   the part of STORED that no other of the list needs: what removing it would free
    SHARED   the rest of STORED, in percent
    """
    repository = app.repository()
    found = [repository.snapshot(i) for i in dict.fromkeys(map(repository.resolve, snapshots))]
    found = found or repository.snapshots()
    usage = repository.du([s.id for s in found])
    data = {
        "snapshots": [usage_json(u) for u in usage.snapshots],
        "total": {k: v for k, v in usage_json(usage.total).items() if k != "id"},
        "sharing": usage.sharing,
    }
    return Answer(data, lambda out: report(out, usage, found))


def usage_json(usage: Usage) -> dict[str, Any]:
    """Sizes of one snapshot, in bytes."""
    sizes = {name: getattr(usage, name) for name in ("logical", "stored", "unique", "shared")}
    return {"id": usage.id.hex() if usage.id else None, **sizes}


def report(out: Printer, usage: DiskUsage, found: list[Snapshot]) -> None:
    """The table, and what it adds up to."""
    out.table(COLUMNS, [_row(u, s.message) for u, s in zip(usage.snapshots, found, strict=True)])
    total = usage.total
    out.line()
    out.line(
        f"{text.count(len(found), 'snapshot')}: {text.size(total.logical)} held in ",
        (text.size(total.stored), "bold"),
        f" ({text.ratio(total.logical, total.stored)}); ",
        (f"{usage.sharing:.0%}", "bold"),
        " of what they need is shared",
    )


def _row(usage: Usage, message: str) -> list[str]:
    return [
        text.short(usage.id) if usage.id else "",
        text.size(usage.logical),
        text.size(usage.stored),
        text.size(usage.unique),
        f"{usage.shared / usage.stored:.0%}" if usage.stored else "–",
        text.first_line(message),
    ]


COMMANDS = {"du": du}
