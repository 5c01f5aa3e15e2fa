"""`ijfs sign` and `ijfs verify`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from ijfs import settings
from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import SNAPSHOT

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _set(name: str, option: str) -> str:
    """What a setting says where an option is left out. click.UsageError where it says nothing."""
    value = settings.value(name)
    if not value:
        raise click.UsageError(f"say which: {option} FILE, or `ijfs config {name} FILE`")
    return value


@verb("sign")
@click.argument("names", nargs=-1, required=True, type=SNAPSHOT, metavar="SNAPSHOT...")
@click.option(
    "--key",
    type=FILE,
    default=partial(_set, "sign_key", "--key"),
    help="A private key of ssh, Ed25519 (default: the setting `sign_key`).",
)
def sign(app: App, names: Sequence[str], key: Path) -> Answer:
    """Sign snapshots: whoever has the public key can tell that they are as they were here.

    With the setting `sign_key`, each snapshot is signed when it is made; this signs those that are there. A push takes
    signatures along, also those of snapshots that the remote has.
    """
    repository = app.repository()
    signed = [repository.resolve(name) for name in names]
    publics = [repository.sign(ident, key) for ident in signed]

    def show(out: Printer) -> None:
        for ident in signed:
            out.line("signed ", (text.short(ident), "yellow"))

    data = [{"id": ident.hex(), "key": public.hex()} for ident, public in zip(signed, publics, strict=True)]
    return Answer({"signed": data}, show)


@verb("verify")
@click.argument("names", nargs=-1, required=True, type=SNAPSHOT, metavar="SNAPSHOT...")
@click.option(
    "--allowed",
    type=FILE,
    default=partial(_set, "allowed_signers", "--allowed"),
    help="Who may sign, as ssh's allowed_signers (default: the setting `allowed_signers`).",
)
def verify(app: App, names: Sequence[str], allowed: Path) -> Answer:
    """Say who signed snapshots. Exit code 1 where one is signed by nobody who may.

    A signature is of the id, which stands for every byte and all that the snapshot descends from: each byte is checked
    against it when it is read (`ijfs fsck` reads all).
    """
    repository = app.repository()
    may = _allowed(allowed)
    rows = []
    for name in names:
        ident = repository.resolve(name)
        signers = repository.signers(ident)
        by = [may[one.public] for one in signers if one.public in may]
        rows.append(
            {"id": ident.hex(), "signers": by, "others": [s.public.hex() for s in signers if s.public not in may]}
        )

    def show(out: Printer) -> None:
        for row in rows:
            short = (str(row["id"])[:10], "yellow")
            if row["signers"]:
                out.line(short, " is signed by ", (", ".join(row["signers"]), "bold green"))
            else:
                other = "by a key that is not allowed" if row["others"] else "by nobody"
                out.line(short, " is signed ", (other, "bold red"))

    return Answer({"snapshots": rows}, show, 0 if all(row["signers"] for row in rows) else 1)


def _allowed(file: Path) -> dict[bytes, str]:
    from ijfs_engine import read_allowed_signers

    return read_allowed_signers(file)


COMMANDS = {"sign": sign, "verify": verify}
