"""`ijfs adopt`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ijfs.cli import host_files, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import ANY
from ijfs_engine.errors import ConflictError

if TYPE_CHECKING:
    from ijfs.live.adopt.apply import Done
    from ijfs.live.adopt.plan import Step
    from ijfs.live.client.adopt import Comparison

# Of paths that an error names.
MOST_NAMES = 5


@verb("adopt")
@click.argument("name", metavar="NAME|SNAPSHOT", type=ANY)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("-n", "--dry-run", is_flag=True, help="Only list what would be done.")
@click.option("--ours", "choice", flag_value="ours", help="Where both changed, leave the machine's file.")
@click.option("--theirs", "choice", flag_value="theirs", help="Where both changed, take NAME's file.")
def adopt(app: App, name: str, paths: tuple[str, ...], dry_run: bool, choice: str | None) -> Answer:
    """Take home what NAME wrote: put it where it would be without ijfs.

    By default what lies in its working directory; else PATHs, `/` for all. What changed on the machine since NAME
    began is in conflict: nothing is done then, unless --ours or --theirs says which to keep.
    """
    from ijfs.live.client.adopt import Adoption

    adoption = Adoption(app.repository(), name)
    found = adoption.compare(paths)
    steps = [step for step in found.steps if not (step.conflict and choice == "ours")]
    conflicts = [step for step in steps if step.conflict]
    if conflicts and choice is None and not dry_run:
        raise _conflict(name, conflicts)
    done: list[Done] = [] if dry_run else list(adoption.take_home(steps))
    left = [item for item in done if item.left]
    data = {
        "name": name,
        "dry_run": dry_run,
        "files": [host_files.as_json(step) for step in (steps if dry_run else [d.step for d in done if not d.left])],
        "left": [{"path": host_files.shown(item.step.path), "why": item.left} for item in left],
        "elsewhere": len(found.elsewhere),
    }
    return Answer(data, lambda out: _report(out, found, steps, left, dry_run=dry_run), 3 if left else 0)


def _conflict(name: str, conflicts: Sequence[Step]) -> ConflictError:
    names = ", ".join(host_files.shown(step.path) for step in conflicts[:MOST_NAMES])
    more = f" and {len(conflicts) - MOST_NAMES} more" if len(conflicts) > MOST_NAMES else ""
    return ConflictError(
        f"both `{name}` and this machine have changed {names}{more}; nothing was done",
        hint="`--theirs` takes those of the branch, `--ours` leaves the machine's, `--dry-run` lists all",
    )


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


COMMANDS = {"adopt": adopt}
