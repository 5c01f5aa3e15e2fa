"""`ijfs base`: a machine's or image's files as something that programs stand on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.output import Answer, Column, Printer

if TYPE_CHECKING:
    from ijfs.live.bases.versions import BaseInfo

COLUMNS = [
    Column("BASE", style="bold green"),
    Column("SNAPSHOT", style="yellow"),
    Column("AGE", right=True),
    Column("FILES", right=True),
    Column("SIZE", right=True),
    Column("VERSIONS", right=True),
    Column("LAID OUT"),
    Column("NEEDED BY", right=True),
    Column("SYSTEM", flex=True),
]
MARKS = {"added": ("A", "green"), "changed": ("M", "yellow"), "removed": ("D", "red")}


@click.group("base", cls=VerbGroup, no_args_is_help=True)
def base() -> None:
    """Store a root file system once, and have programs stand on it instead of on this machine's files."""


@verb("base import")
@click.argument("directory", default="/", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", metavar="N", help="What it is called (default: `machine` for /, else the directory's name).")
@click.option("--exclude", multiple=True, metavar="PATH", help="Leave out what is below PATH, as it is in there.")
def import_(app: App, directory: Path, name: str | None, exclude: tuple[str, ...]) -> Answer:
    """Store DIRECTORY (default: /), the root of a machine or an image, as the newest version of a base.

    Kernel interfaces, scratch directories, other mounts and the repository are left out. What did not change since the
    last import of that base is not read again. Versions that nothing needs any more are let go.
    """
    from ijfs.live.bases.importing import import_base
    from ijfs.live.bases.records import DEFAULT

    repository = app.repository()
    chosen = name or (DEFAULT if directory.resolve() == Path("/") else _sound(directory.resolve().name))
    done = import_base(repository, directory, chosen, exclude=exclude, progress=app.progress("base import"))
    size = done.snapshot.size or 0
    data = {
        "name": chosen,
        "snapshot": done.snapshot.id.hex(),
        "changed": done.changed,
        "files": done.files,
        "size": size,
        "read": done.bytes_read,
        "stored": done.stored_bytes,
        "seconds": done.seconds,
    }

    def show(out: Printer) -> None:
        what = "" if done.changed else "  nothing changed"
        out.line((text.short(done.snapshot.id), "yellow"), " base ", (chosen, "bold green"), (what, "dim"))
        out.line(
            (
                f"  {text.count(done.files, 'file')}, {text.size(size)} · {text.size(done.bytes_read)} read in "
                f"{text.seconds(done.seconds)} · {text.size(done.stored_bytes)} stored",
                "dim",
            )
        )

    return Answer(data, show)


@verb("base list")
def list_(app: App) -> Answer:
    """List bases: what they are of, and how many snapshots and live programs need them."""
    from ijfs.live.bases.versions import bases

    found = bases(app.repository())

    def show(out: Printer) -> None:
        if not found:
            out.line(("no base yet: `ijfs base import` makes one", "dim"))
            return
        out.table(COLUMNS, (_row(one) for one in found))

    return Answer({"bases": [_json(one) for one in found]}, show)


def _row(one: BaseInfo) -> list[Any]:
    return [
        one.name,
        text.short(one.snapshot.id),
        text.age(one.snapshot.created_ns),
        str(one.meta.files),
        text.size(one.snapshot.size or 0),
        str(one.versions),
        "yes" if one.laid_out else "",
        str(len(one.needed_by)),
        f"{one.meta.system} ({one.meta.origin} of {one.meta.hostname})",
    ]


def _json(one: BaseInfo) -> dict[str, Any]:
    return {
        "name": one.name,
        "snapshot": one.snapshot.id.hex(),
        "created_ns": one.snapshot.created_ns,
        "size": one.snapshot.size,
        "files": one.meta.files,
        "origin": one.meta.origin,
        "system": one.meta.system,
        "hostname": one.meta.hostname,
        "versions": one.versions,
        "laid_out": one.laid_out,
        "needed_by": one.needed_by,
    }


@verb("base diff")
@click.argument("name", default="machine")
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def diff(app: App, name: str, directory: Path | None) -> Answer:
    """Say what is different in DIRECTORY (default: where it was imported from) from the base NAME (default: machine).

    By kind, size, time, mode and owner; bytes are not read. `ijfs diff` compares two snapshots.
    """
    from ijfs.live.bases.comparison import compare

    changes = compare(app.repository(), name, directory)

    def show(out: Printer) -> None:
        for change in changes:
            mark, style = MARKS[change.what]
            out.line((mark, style), " ", change.path)
        if not changes:
            out.line(("no difference", "dim"))

    return Answer({"name": name, "changes": [{"change": c.what, "path": c.path} for c in changes]}, show)


@verb("base rm")
@click.argument("names", nargs=-1, required=True)
def rm(app: App, names: tuple[str, ...]) -> Answer:
    """Remove bases, with all their versions. Refused while a snapshot or a live program needs one."""
    from ijfs.live.bases.versions import remove

    repository = app.repository()
    removed = {name: remove(repository, name) for name in names}

    def show(out: Printer) -> None:
        for name in removed:
            out.line("removed base ", (name, "bold"))
        out.line(("`ijfs gc` frees its bytes", "dim"))

    return Answer({"removed": [{"name": name, "snapshots": ids} for name, ids in removed.items()]}, show)


def _sound(wish: str) -> str:
    return "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in wish).strip("._-")[:48] or "base"


for command in (import_, list_, diff, rm):
    base.add_command(command)

COMMANDS = {"base": base}
