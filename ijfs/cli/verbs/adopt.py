"""`ijfs adopt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ijfs.cli import host_files, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import ANY

if TYPE_CHECKING:
    from ijfs.live.adopt.apply import Done
    from ijfs.live.adopt.plan import Step
    from ijfs.live.client.adopt import Choice, Comparison
    from ijfs.live.client.winner import Family


@verb("adopt")
@click.argument("name", metavar="NAME|SNAPSHOT", type=ANY)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only list what would be done.")
@click.option("--winner", is_flag=True, help="And give NAME the branch it came from; the other copies end, saved.")
@click.option("--ours", "choice", flag_value="ours", help="Where both changed, leave the machine's file.")
@click.option("--theirs", "choice", flag_value="theirs", help="Where both changed, take NAME's file.")
def adopt(app: App, name: str, paths: tuple[str, ...], dry_run: bool, winner: bool, choice: Choice | None) -> Answer:
    """Take home what NAME wrote: put it where it would be without ijfs.

    By default what lies in its working directory; else PATHs, `/` for all. What changed on the machine since NAME
    began is in conflict: nothing is done then, unless --ours or --theirs says which to keep.

    With --winner the branch of the program that NAME is a fork of goes on from NAME. Its live siblings, and that
    program, are saved and ended.
    """
    from ijfs.live.client.adopt import Adoption
    from ijfs.live.client.winner import family, settle

    won = family(app.repository(), name) if winner else None
    adoption = Adoption(app.repository(), name)
    found = adoption.compare(paths)
    if dry_run:
        steps = [step for step in found.steps if not (step.conflict and choice == "ours")]
    else:
        steps = adoption.chosen(found, choice)
    done: list[Done] = [] if dry_run else list(adoption.take_home(steps))
    left = [item for item in done if item.left]
    kept = None
    if left:  # somebody has to look at that first
        won = None
    if won is not None and not dry_run:
        progress = app.progress(f"adopt {name}")
        kept = settle(app.repository(), won, progress.event)
    data = {
        "name": name,
        "dry_run": dry_run,
        "files": [host_files.as_json(step) for step in (steps if dry_run else [d.step for d in done if not d.left])],
        "left": [{"path": host_files.shown(item.step.path), "why": item.left} for item in left],
        "elsewhere": len(found.elsewhere),
        "winner": None if won is None else {"branch": won.branch, "ended": list(won.others), "kept": kept},
    }

    def show(out: Printer) -> None:
        _report(out, found, steps, left, dry_run=dry_run)
        if won is not None:
            _report_winner(out, won, kept, dry_run=dry_run)

    return Answer(data, show, 3 if left else 0)


def _report(out: Printer, found: Comparison, steps: Sequence[Step], left: Sequence[Done], *, dry_run: bool) -> None:
    why = {item.step.path: item.left for item in left}
    for step in steps:
        if step.path not in why:
            host_files.line(out, step)
    for item in left:
        out.line(("! ", "red"), (host_files.shown(item.step.path), "red"), (f"  left: {item.left}", "dim"))
    if not steps:
        out.line(("nothing to take home", "dim"))
    elif not dry_run:
        out.line(f"took home {text.count(len(steps) - len(left), 'path')}")
    if found.elsewhere:
        out.line((f"{host_files.elsewhere(found)}; name the paths, or `/` for all", "dim"))


def _report_winner(out: Printer, won: Family, kept: str | None, *, dry_run: bool) -> None:
    would = "would be" if dry_run else "is"
    out.line(f"`{won.branch}` {would} the branch of ", (won.name, "bold green"))
    if kept is not None:
        out.line((f"  what it had before is the branch {kept}", "dim"))
    if won.others:
        out.line(f"  {'to be ' if dry_run else ''}saved and ended: {text.listing(won.others)}")


COMMANDS = {"adopt": adopt}
