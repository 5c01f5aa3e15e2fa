"""`ijfs log`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ijfs.cli import text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import SNAPSHOT, elsewhere, needless
from ijfs.history.snapshots import History

if TYPE_CHECKING:
    from ijfs_engine import Snapshot

COLUMNS = [Column("SNAPSHOT", style="yellow"), Column("AGE", right=True), Column("MESSAGE", flex=True), Column("")]


@verb("log")
@click.argument("snapshot", required=False, type=SNAPSHOT)
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="K", help="At most K snapshots.")
@needless("--oneline")
@needless("-a", "--all")
@elsewhere("--graph", said="`ijfs tree` draws it")
@elsewhere("-p", "--patch", said="`ijfs diff OLD NEW` says what differs")
@elsewhere("--stat", said="`ijfs diff OLD NEW` says what differs")
@elsewhere("-f", "--follow", said="`ijfs logs -f NAME` follows what a program prints")
def log(app: App, snapshot: str | None, limit: int | None) -> Answer:
    """List snapshots with [branches] and (tags), newest first: all, or SNAPSHOT and its ancestors. Of a remote, by its
    name, what was there at the last `ijfs fetch`.

    -v adds whole messages, parents and times.
    """
    repository = app.repository()
    remote, _, rest = (snapshot or "").partition("/")
    if remote in {one.name for one in repository.remotes.all()}:
        history, wanted = History.there(repository.remotes.known(remote)), 0
        snapshot = snapshot if rest else None
    else:
        listed = repository.stats().snapshots
        wanted = listed if limit is None or snapshot is not None else min(limit, listed)
        history = History.of(repository, wanted)
    found = list(history.snapshots.values())
    if snapshot is not None:
        kept = history.ancestors([repository.resolve(snapshot)])
        found = [s for s in found if s.id in kept]
    found = found[:limit]
    data = {"snapshots": [history.json(s) for s in found]}
    unreadable = max(0, wanted - len(history.snapshots))

    def show(out: Printer) -> None:
        (_long if app.verbose else _short)(out, found, history)
        if unreadable:
            out.line((f"{text.count(unreadable, 'snapshot')} cannot be read: `ijfs fsck` says why", "red"))

    return Answer(data, show, names=[text.short(s.id) for s in found])


def _short(out: Printer, found: list[Snapshot], history: History) -> None:
    if not found:
        out.line(("no snapshots yet: `ijfs save` or `ijfs import` makes one", "dim"))
        return
    out.table(
        COLUMNS,
        (
            [
                text.short(s.id),
                (text.age(s.created_ns), "dim"),
                text.first_line(s.message) or ("(no message)", "dim"),
                views.spans(history.labels, s.id),
            ]
            for s in found
        ),
    )


def _long(out: Printer, found: list[Snapshot], history: History) -> None:
    for s in found:
        out.line("snapshot ", (s.id.hex(), "yellow"), " ", *views.spans(history.labels, s.id))
        for parent in history.parents[s.id]:
            out.line("parent   ", parent.hex())
        out.line("created  ", text.moment(s.created_ns), (f"  ({text.ago(s.created_ns)})", "dim"))
        out.line()
        for line in (s.message.strip() or "(no message)").splitlines():
            out.line("    ", line)
        out.line()


COMMANDS = {"log": log}
