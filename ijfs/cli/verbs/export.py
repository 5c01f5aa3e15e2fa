"""`ijfs export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer
from ijfs.cli.params import SNAPSHOT
from ijfs.cli.verbs import ls

if TYPE_CHECKING:
    from ijfs_engine import Reader


@verb("export")
@click.argument("snapshot", type=SNAPSHOT)
@click.argument("directory", type=click.Path(path_type=Path))
def export(app: App, snapshot: str, directory: Path) -> Answer:
    """Write SNAPSHOT to DIRECTORY, byte for byte, with modes, times, links and attributes; as root with owners, too.

    SNAPSHOT:PATH writes only what is below PATH: `ijfs export main:images DIR` is a set of images for `criu restore`.
    DIRECTORY must be empty or absent.
    """
    from ijfs_engine import export_tree

    repository = app.repository()
    spec, where = views.split_spec(snapshot, None)
    record = repository.snapshot(repository.resolve(spec))
    reader = repository.reader()
    tree = _tree(reader, record.root, where)
    _check_empty(directory)
    directory.mkdir(parents=True, exist_ok=True)
    progress = app.progress("export")
    sizes = [entry.size for _, entry in ls.walk(reader, tree) if entry.kind == "f"]
    export_tree(reader, tree, directory, progress=progress)
    data = {
        "snapshot": record.id.hex(),
        "directory": str(directory.absolute()),
        "files": len(sizes),
        "bytes": sum(sizes),
    }
    return Answer(
        data,
        lambda out: out.line(
            f"wrote {text.count(len(sizes), 'file')}, {text.size(sum(sizes))} to ", (str(directory), "bold")
        ),
    )


def _tree(reader: Reader, root: bytes, where: str) -> bytes:
    if not where:
        return root
    entry = reader.lookup(root, where)
    if entry.kind != "d":
        from ijfs_engine.errors import IjfsError

        raise IjfsError(f"{where} is not a directory", hint="`ijfs cat SNAPSHOT PATH` writes a file out")
    return ls.tree_id(entry)


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        from ijfs_engine.errors import IjfsError

        raise IjfsError(f"{directory} is not an empty directory", hint="name a new directory, or an empty one")


COMMANDS = {"export": export}
