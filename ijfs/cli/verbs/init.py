"""`ijfs init`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import passphrases
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer

if TYPE_CHECKING:
    from ijfs_engine import WayIn

FIRST_KEY = "main"


@verb("init")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--encrypt", is_flag=True, help="Keep everything in it secret from who has the disk (docs/security.md).")
@passphrases.way_options
def init(
    app: App, directory: Path | None, encrypt: bool, passphrase_file: Path | None, recipients: Sequence[str]
) -> Answer:
    """Make an empty repository in DIRECTORY (default: the one that -r, IJFS_REPO or XDG name).

    A directory that exists must be empty. With --encrypt a passphrase is asked for (or IJFS_PASSPHRASE,
    IJFS_PASSPHRASE_FILE or IJFS_PASSPHRASE_COMMAND gives it): who loses it and every other key loses all that is saved.
    """
    from ijfs_engine import Repository
    from ijfs_engine.errors import IjfsError

    path = (directory or app.repository_path).absolute()
    if Repository.is_at(path):
        raise IjfsError(f"there is a repository at {path} already", hint="`ijfs tree` shows what is in it")
    if not encrypt and (passphrase_file or recipients):
        raise click.UsageError("--passphrase-file and --recipient belong to --encrypt")
    with Repository.init(path, way_in=_way_in(app, passphrase_file, recipients) if encrypt else None):
        pass

    def show(out: Printer) -> None:
        out.line("made an encrypted repository in " if encrypt else "made a repository in ", (str(path), "bold"))
        if encrypt and out.terminal:
            out.line(("  nothing in it can be read without a key: `ijfs keyring add` makes a second one", "dim"))
        if out.terminal:
            out.line(("  next: `ijfs kernel start --name lab`, or `ijfs run -- COMMAND`", "dim"))

    return Answer({"path": str(path), "encrypted": encrypt}, show)


def _way_in(app: App, file: Path | None, recipients: Sequence[str]) -> WayIn:
    """The first key."""
    from ijfs_engine import wrap_for_passphrase, wrap_for_recipients

    if recipients:
        return lambda ring: wrap_for_recipients(ring, FIRST_KEY, recipients)
    passphrase = passphrases.first(app, file, FIRST_KEY)
    return lambda ring: wrap_for_passphrase(ring, FIRST_KEY, passphrase)


COMMANDS = {"init": init}
