"""`ijfs remote gc`, `fsck`, `du`, and `ijfs op`: the store of a remote looked after, and its operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import AGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ijfs_engine import CheckReport, Harm, Repository, SweepReport, UndoReport

DEFAULT = "origin"
SHARES = [
    Column("SNAPSHOT", style="yellow"),
    Column("NEEDS", right=True),
    Column("ALONE", right=True),
    Column("MESSAGE", flex=True),
]
OPERATIONS = [
    Column("OPERATION", style="yellow"),
    Column("AGE", right=True),
    Column("WHO"),
    Column("WHY"),
    Column("WHAT", flex=True),
]


def chosen(repository: Repository, name: str | None) -> str:
    """The remote that is meant where perhaps none is named: origin, or the only one. UnknownNameError."""
    from ijfs_engine.errors import UnknownNameError

    known = [one.name for one in repository.remotes.all()]
    found = name or (DEFAULT if DEFAULT in known else known[0] if len(known) == 1 else DEFAULT)
    if found in known:
        return found
    there = f"; there are {', '.join(known)}" if known else ""
    raise UnknownNameError(f"there is no remote '{found}'{there}", hint="`ijfs remote add origin URL` makes one")


@verb("remote gc")
@click.argument("name", required=False, metavar="[REMOTE]")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be freed.")
@click.option("--grace", type=AGE, default="7d", metavar="AGE", help="How old is what may go (default: 7d).")
def gc(app: App, name: str | None, dry_run: bool, grace: float) -> Answer:
    """Free what no branch or tag of REMOTE (default: origin) reaches: mark it now, delete what was marked --grace ago.

    Other machines may push meanwhile. Ages are by the store's own clock.
    """
    repository = app.repository()
    remote = chosen(repository, name)
    report = repository.remotes.gc(remote, grace_s=grace, dry_run=dry_run)
    return Answer({"remote": remote, "dry_run": dry_run, **report._asdict()}, lambda out: _swept(out, report, dry_run))


def _swept(out: Printer, report: SweepReport, dry_run: bool) -> None:
    would = "would have " if dry_run else ""
    out.line(
        f"{would}freed ",
        (text.size(report.bytes_removed), "bold"),
        f" in {text.count(report.packs_removed, 'pack')}, marked {text.size(report.bytes_marked)} in "
        f"{text.count(report.packs_marked, 'pack')} for a later gc",
    )
    if report.snapshots_removed:
        out.line((f"  {text.count(report.snapshots_removed, 'snapshot')} that nothing led to", "dim"))
    if report.waiting:
        out.line((f"  {text.count(report.waiting, 'pack')} marked before wait until their grace is over", "dim"))


@verb("remote fsck")
@click.argument("name", required=False, metavar="[REMOTE]")
@click.option("--quick", is_flag=True, help="Look at what is there, not at every byte.")
@click.option("--repair", is_flag=True, help="Send anew what is harmed there and whole here.")
def fsck(app: App, name: str | None, quick: bool, repair: bool) -> Answer:
    """Check every byte that the tree of REMOTE (default: origin) needs. Exit code 1 for harm that is left."""
    repository = app.repository()
    remote = chosen(repository, name)
    progress = app.progress(f"fsck of {remote}")
    report = repository.remotes.fsck(remote, repair=repair, data=not quick, progress=progress)
    data = {
        "remote": remote,
        "clean": not report.harm,
        **{key: getattr(report, key) for key in ("snapshots", "operations", "packs", "bytes_read")},
        "harm": [_harm(one) for one in report.harm],
        "healed": [ident.hex() for ident in report.healed],
        "left": [_harm(one) for one in report.left],
    }
    return Answer(data, lambda out: _checked(out, remote, report), 1 if report.left else 0)


def _harm(one: Harm) -> dict[str, Any]:
    return {"where": one.where, "message": one.message, "snapshots": [ident.hex() for ident in one.snapshots]}


def _checked(out: Printer, remote: str, report: CheckReport) -> None:
    for one in report.harm:
        hurt = _some(one.snapshots)
        out.line((one.where, "red"), f": {one.message}", (f"  hurts {hurt}" if hurt else "", "dim"))
    if report.healed:
        out.line(f"sent anew: {text.count(len(report.healed), 'snapshot')}")
        left = _some(list(dict.fromkeys(ident for one in report.left for ident in one.snapshots)))
        if left:
            out.line(("not whole here, and harmed there still: ", "red"), left)
    what = (
        f"{text.count(report.snapshots, 'snapshot')}, {text.count(report.operations, 'operation')}, "
        f"{text.count(report.packs, 'pack')}, {text.size(report.bytes_read)} read"
    )
    out.line((remote, "bold green"), f" is {'harmed' if report.left else 'whole'}: {what}")
    if report.left:
        out.line(("  on a machine that has these snapshots: `ijfs remote fsck --repair`", "dim"))


def _some(snapshots: Sequence[bytes]) -> str:
    return ", ".join(map(text.short, snapshots[:5])) + (", …" if len(snapshots) > 5 else "")


@verb("remote du")
@click.argument("name", required=False, metavar="[REMOTE]")
def du(app: App, name: str | None) -> Answer:
    """Say what the tree of REMOTE (default: origin) takes.

    \b
    NEEDS    bytes of all packs that a snapshot needs
    ALONE    of those that no other needs
    """
    repository = app.repository()
    remote = chosen(repository, name)
    usage = repository.remotes.du(remote)
    tree = repository.remotes.known(remote)
    data = {
        "remote": remote,
        **{key: getattr(usage, key) for key in ("total", "needed", "unneeded", "packs")},
        "snapshots": [{"id": one.id.hex(), "needed": one.needed, "alone": one.alone} for one in usage.snapshots],
    }

    def show(out: Printer) -> None:
        rows = sorted(usage.snapshots, key=lambda one: (-one.alone, one.id))
        out.table(
            SHARES,
            [
                [
                    text.short(s.id),
                    text.size(s.needed),
                    text.size(s.alone),
                    text.first_line(tree.snapshot(s.id).message),
                ]
                for s in rows
            ],
        )
        out.line(
            (text.size(usage.total), "bold"),
            f" in all, {text.count(usage.packs, 'pack')} needed; {text.size(usage.unneeded)} for `ijfs remote gc`",
        )

    return Answer(data, show)


@click.group("op", cls=VerbGroup, no_args_is_help=False)
def op() -> None:
    """See and undo what was done to the names of a remote, by any machine."""


@verb("op log")
@click.argument("name", required=False, metavar="[REMOTE]")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, metavar="K", help="At most K (default: 20).")
def log(app: App, name: str | None, limit: int) -> Answer:
    """List the newest operations on REMOTE (default: origin): who changed which names when."""
    repository = app.repository()
    remote = chosen(repository, name)
    found = repository.remotes.operations(remote, limit)
    data: dict[str, Any] = {
        "remote": remote,
        "operations": [
            {
                "id": ident.hex(),
                "parents": [parent.hex() for parent in one.parents],
                "time": text.iso(one.time_ns),
                "who": one.who,
                "host": one.host,
                "why": one.why,
                "refs": {name: new.hex() if new else None for name, new in one.moves().items()},
                "listed": len(one.listed()),
                "unlisted": len(one.unlisted()),
            }
            for ident, one in found
        ],
    }

    def show(out: Printer) -> None:
        rows = [[text.short(i), (text.age(one.time_ns), "dim"), one.who, one.why, _what(one)] for i, one in found]
        out.table(OPERATIONS, rows)

    return Answer(data, show)


def _what(operation: Any) -> str:
    parts = [f"{name.partition('/')[2]} at {text.short(new) if new else 'nowhere'}" for name, new in
             operation.moves().items()]  # fmt: skip
    parts += [f"{text.count(len(operation.unlisted()), 'snapshot')} removed"] if operation.unlisted() else []
    return ", ".join(parts) or (f"{text.count(len(operation.listed()), 'snapshot')}" if operation.listed() else "")


@verb("op undo")
@click.argument("name", required=False, metavar="[REMOTE]")
@click.argument("operation", required=False)
def undo(app: App, name: str | None, operation: str | None) -> Answer:
    """Put names of REMOTE (default: origin) back as they were before OPERATION (default: the newest).

    Names that moved on since stay. An undo is an operation as well, and can be undone.
    """
    repository = app.repository()
    if name and not operation and name not in {one.name for one in repository.remotes.all()}:
        name, operation = None, name
    remote = chosen(repository, name)
    report = repository.remotes.undo(remote, operation)
    data = {
        "remote": remote,
        "operation": report.operation.hex(),
        "refs": {ref: at.hex() if at else None for ref, at in report.refs.items()},
        "moved_on": report.moved_on,
    }
    return Answer(data, lambda out: _undone(out, remote, report))


def _undone(out: Printer, remote: str, report: UndoReport) -> None:
    out.line("undid ", (text.short(report.operation), "yellow"), f" ({report.why}) at ", (remote, "bold green"))
    for ref, at in report.refs.items():
        out.line(f"  {ref.partition('/')[2]} is ", (f"at {text.short(at)}" if at else "gone", "yellow"))
    for ref in report.moved_on:
        out.line((f"  {ref.partition('/')[2]} moved on since, and stays", "yellow"))


@verb("op restore")
@click.argument("name", required=False, metavar="[REMOTE]")
@click.argument("operation")
def restore(app: App, name: str | None, operation: str) -> Answer:
    """Put all names of REMOTE (default: origin) back as they were after OPERATION.

    What was done since leaves the names and stays in the log: `ijfs op undo` takes the restore back. Snapshots that
    those names led to are listed again; of what a gc has deleted meanwhile `ijfs remote fsck` tells.
    """
    repository = app.repository()
    remote = chosen(repository, name)
    report = repository.remotes.restore_operation(remote, operation)
    data = {
        "remote": remote,
        "operation": report.operation.hex(),
        "refs": {ref: at.hex() if at else None for ref, at in report.refs.items()},
        "listed": [ident.hex() for ident in report.listed],
    }

    def show(out: Printer) -> None:
        after = text.short(report.operation)
        out.line("names at ", (remote, "bold green"), " are as after ", (after, "yellow"))
        for ref, at in report.refs.items():
            out.line(f"  {ref.partition('/')[2]} is ", (f"at {text.short(at)}" if at else "gone", "yellow"))
        if report.listed:
            out.line((f"  {text.count(len(report.listed), 'snapshot')} listed again", "dim"))

    return Answer(data, show)


for _command in (log, undo, restore):
    op.add_command(_command)

COMMANDS = {"op": op}
