"""`ijfs init`."""

from __future__ import annotations

from pathlib import Path

import click

from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer


@verb("init")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def init(app: App, directory: Path | None) -> Answer:
    """Make an empty repository in DIRECTORY (default: the one that -r, IJFS_REPO or XDG name).

    A directory that exists must be empty.
    """
    from ijfs_engine import Repository
    from ijfs_engine.errors import IjfsError

    path = (directory or app.repository_path).absolute()
    if (path / "format").is_file():
        raise IjfsError(f"there is a repository at {path} already", hint="`ijfs tree` shows what is in it")
    with Repository.init(path):
        pass

    def show(out: Printer) -> None:
        out.line("made a repository in ", (str(path), "bold"))
        if out.terminal:
            out.line(("  next: `ijfs kernel start --name lab`, or `ijfs run -- COMMAND`", "dim"))

    return Answer({"path": str(path)}, show)


COMMANDS = {"init": init}
