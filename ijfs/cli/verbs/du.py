"""`ijfs du`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import SNAPSHOT
from ijfs.history.snapshots import Labels

if TYPE_CHECKING:
    from ijfs_engine import DiskUsage, Snapshot, Usage

ALL = [
    Column("SNAPSHOT", style="yellow"),
    Column("LOGICAL", right=True),
    Column("STORED", right=True),
    Column("UNIQUE", right=True),
    Column("SHARED", right=True),
    Column("", optional=True),
    Column("MESSAGE", flex=True),
]
"""With -v."""

COLUMNS = [
    Column("SNAPSHOT", style="yellow"),
    Column("HOLDS", right=True, drop=1),
    Column("ALONE", right=True),
    Column("", style="cyan", drop=2),
    Column("", optional=True),
    Column("MESSAGE", flex=True),
]

BAR = 10
"""Columns of the longest bar."""


@verb("du")
@click.argument("snapshots", nargs=-1, type=SNAPSHOT)
def du(app: App, snapshots: tuple[str, ...]) -> Answer:
    """Say what you get back: of all snapshots, or of SNAPSHOTS compared with one another, the largest first.

    \b
    HOLDS    what its memory and files add up to
    ALONE    the bytes on disk that no other of the list needs: what removing it would free

    -v shows instead LOGICAL (the same as HOLDS), STORED (all bytes on disk that it needs), UNIQUE (the same as ALONE)
    and SHARED (the rest of STORED, in percent).
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
    labels = Labels.of(repository.refs)
    return Answer(data, lambda out: report(out, usage, found, labels, whole=app.verbose > 0))


def usage_json(usage: Usage) -> dict[str, Any]:
    """Sizes of one snapshot, in bytes."""
    sizes = {name: getattr(usage, name) for name in ("logical", "stored", "unique", "shared")}
    return {"id": usage.id.hex() if usage.id else None, **sizes}


def report(out: Printer, usage: DiskUsage, found: list[Snapshot], labels: Labels, *, whole: bool) -> None:
    """The table, and what it adds up to."""
    if not found:
        out.line(("no snapshots yet: `ijfs save` or `ijfs import` makes one", "dim"))
        return
    pairs = list(zip(usage.snapshots, found, strict=True))
    if whole:
        out.table(ALL, [_whole_row(u, s, labels) for u, s in pairs])
    else:
        pairs.sort(key=lambda pair: -pair[0].unique)
        most = max((u.unique for u in usage.snapshots), default=0)
        out.table(COLUMNS, [_row(u, s, labels, most if out.unicode else 0) for u, s in pairs])
    total = usage.total
    alone = sum(u.unique for u in usage.snapshots)
    out.line()
    out.line(
        f"{text.count(len(found), 'snapshot')} {'holds' if len(found) == 1 else 'hold'} {text.size(total.logical)} in ",
        (text.size(total.stored), "bold"),
        f" on disk ({text.ratio(total.logical, total.stored)})",
    )
    out.line((f"{text.size(total.stored - alone)} of that are shared, {text.size(alone)} belong to one alone", "dim"))


def _row(usage: Usage, snapshot: Snapshot, labels: Labels, most: int) -> list[Any]:
    bar = "▇" * max(round(usage.unique / most * BAR), 1 if usage.unique else 0) if most else ""
    return [
        text.short(snapshot.id),
        text.size(usage.logical),
        text.size(usage.unique),
        bar,
        views.spans(labels, snapshot.id),
        text.first_line(snapshot.message),
    ]


def _whole_row(usage: Usage, snapshot: Snapshot, labels: Labels) -> list[Any]:
    return [
        text.short(snapshot.id),
        text.size(usage.logical),
        text.size(usage.stored),
        text.size(usage.unique),
        f"{usage.shared / usage.stored:.0%}" if usage.stored else "–",
        views.spans(labels, snapshot.id),
        text.first_line(snapshot.message),
    ]


COMMANDS = {"du": du}
