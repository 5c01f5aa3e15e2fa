"""`ijfs init`."""

from __future__ import annotations

from pathlib import Path

import click

from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer


@verb("init")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def init(app: App, directory: Path | None) -> Answer:
    """Make an empty repository in DIRECTORY (default: the one that -r, IJFS_REPO or XDG name).

    A directory that exists must be empty.
    """
    from ijfs_engine import Repository

    path = (directory or app.repository_path).absolute()
    with Repository.init(path):
        pass
    return Answer({"path": str(path)}, lambda out: out.line("made a repository in ", (str(path), "bold")))


COMMANDS = {"init": init}
