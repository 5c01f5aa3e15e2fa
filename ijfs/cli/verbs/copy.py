"""`ijfs copy`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import passphrases, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer

if TYPE_CHECKING:
    from ijfs_engine import Repository


@verb("copy")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("names", nargs=-1)
def copy(app: App, source: Path, names: Sequence[str]) -> Answer:
    """Copy branches, tags or snapshots of another repository, SOURCE, into this one, with what they descend from.

    Without NAMES all branches and tags. Either may be encrypted: ids are others then, and all else is the same. A name
    that is elsewhere here stays, and the other comes as NAME@copy.

    A snapshot of which something is damaged stays behind and is named, exit code 3: its branch comes at the nearest
    ancestor that is whole, a tag does not come.
    """
    from ijfs_engine import Repository
    from ijfs_engine.errors import PartialError

    target = app.repository()
    passphrases.ask_at_terminal(app)
    with Repository.open(source) as opened, app.progress("copy") as reporter:
        refs, also = _wanted(opened, names)
        report = target.copy_from(opened, refs, also=also, progress=reporter)

    def show(out: Printer) -> None:
        stored = text.size(report.stored)
        out.line("copied ", (text.count(len(report.snapshots), "snapshot"), "bold"), f", {stored} stored")
        for ref, ident in report.refs.items():
            kind, _, short = ref.partition("/")
            out.line(f"{kind} ", (short, "bold green"), " is at ", (text.short(ident), "yellow"))
        for ref, moved in report.apart.items():
            out.line(("  apart: ", "yellow"), f"{ref} is elsewhere here; the other is {moved}")
        for ident, why in report.damaged.items():
            out.line(("  damaged there: ", "red"), (text.short(ident), "yellow"), f" did not come: {why}")
        for ref, place in report.behind.items():
            where = f"comes at {text.short(place)}, its nearest ancestor that is whole" if place else "did not come"
            out.line(("  behind: ", "yellow"), f"{ref.replace('/', ' ', 1)} {where}")

    data = {
        "snapshots": {old.hex(): new.hex() for old, new in report.snapshots.items()},
        "refs": {name: ident.hex() for name, ident in report.refs.items()},
        "apart": report.apart,
        "stored": report.stored,
        "damaged": {ident.hex(): why for ident, why in report.damaged.items()},
        "behind": {name: ident.hex() if ident else None for name, ident in report.behind.items()},
    }
    return Answer(data, show, PartialError.exit_code if report.damaged else 0)


def _wanted(source: Repository, names: Sequence[str]) -> tuple[dict[str, bytes], list[bytes]]:
    """Refs that are meant, and snapshots that were named by something else."""
    branches = {f"branch/{name}": ident for name, ident in source.refs.branches().items()}
    refs = {**branches, **{f"tag/{name}": ident for name, ident in source.refs.tags().items()}}
    if not names:
        return refs, []
    chosen: dict[str, bytes] = {}
    also: list[bytes] = []
    for name in names:
        fits = [ref for ref in (f"branch/{name}", f"tag/{name}", name) if ref in refs]
        if fits:
            chosen[fits[0]] = refs[fits[0]]
        else:
            also.append(source.resolve(name))
    return chosen, also


COMMANDS = {"copy": copy}
