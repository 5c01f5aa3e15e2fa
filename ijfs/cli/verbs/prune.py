"""`ijfs prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import AGE

if TYPE_CHECKING:
    from ijfs_engine import PruneReport, Snapshot

KINDS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


@verb("prune")
@click.option("--keep-last", type=int, default=0, metavar="N", help="The newest N of each branch; -1 for all.")
@click.option("--keep-hourly", type=int, default=0, metavar="N", help="The newest of each of N hours that have any.")
@click.option("--keep-daily", type=int, default=0, metavar="N", help="… of N days.")
@click.option("--keep-weekly", type=int, default=0, metavar="N", help="… of N weeks.")
@click.option("--keep-monthly", type=int, default=0, metavar="N", help="… of N months.")
@click.option("--keep-yearly", type=int, default=0, metavar="N", help="… of N years.")
@click.option(
    "--unnamed-older-than",
    type=AGE,
    metavar="AGE",
    help="Drop branches that ijfs named (NAME.1, …) and nobody touched for AGE: 12h, 7d, 2w.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go, and why the rest stays.")
def prune(app: App, dry_run: bool, unnamed_older_than: float | None, **keep: int) -> Answer:
    """Thin branches out: remove the snapshots that no rule keeps. `ijfs gc` then frees their bytes.

    Heads of branches, tagged snapshots and what live programs stand on always stay; but with --unnamed-older-than
    branches go that ijfs made itself when a program went back (NAME.1, NAME.2, …), and what only they lead to.
    """
    from ijfs_engine import PrunePolicy

    repository = app.repository()
    known = {s.id: s for s in repository.snapshots()}
    numbers = {kind: keep[f"keep_{kind}"] for kind in KINDS}
    policy = PrunePolicy(**numbers, unnamed_older_than_s=unnamed_older_than)
    found = repository.prune(policy, dry_run=dry_run)
    data = {
        "dry_run": found.dry_run,
        "kept": [{"id": ident.hex(), "reasons": list(reasons)} for ident, reasons in found.kept],
        "removed": [ident.hex() for ident in found.removed],
        "branches": [{"name": name, "id": head.hex()} for name, head in found.branches],
    }
    return Answer(data, lambda out: _report(out, found, known, reasons=dry_run or app.verbose > 0))


def _report(out: Printer, found: PruneReport, known: dict[bytes, Snapshot], *, reasons: bool) -> None:
    for ident, why in found.kept if reasons else ():
        out.line(("keep    ", "green"), *_subject(ident, known), (f"  ({text.listing(why)})", "dim"))
    for name, head in found.branches:
        out.line(("drop    ", "red"), f"branch {name} ", (f"(at {text.short(head)})", "dim"))
    for ident in found.removed:
        out.line(("remove  ", "red"), *_subject(ident, known))
    done = "would remove" if found.dry_run else "removed"
    out.line(f"{done} {text.count(len(found.removed), 'snapshot')}, {len(found.kept)} stay")
    if found.removed and not found.dry_run:
        out.line(("`ijfs gc` frees their bytes", "dim"))


def _subject(ident: bytes, known: dict[bytes, Snapshot]) -> list[tuple[str, str]]:
    return [(text.short(ident), "yellow"), (f"  {text.first_line(known[ident].message)}", "")]


COMMANDS = {"prune": prune}
