"""`ijfs keyring`: the ways to open an encrypted repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import passphrases, text
from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.output import Answer, Column, Printer

if TYPE_CHECKING:
    from ijfs_engine import Repository

COLUMNS = [Column("KEY", style="bold green"), Column("AGE", right=True), Column("OPENED BY")]


@click.group("keyring", cls=VerbGroup)
def keyring() -> None:
    """The ways to open an encrypted repository: passphrases, and private keys of age or ssh.

    `ijfs init --encrypt` makes such a repository. The keys of `ijfs serve` are others: `ijfs key`.
    """


@verb("keyring list")
def list_(app: App) -> Answer:
    """List the ways in."""
    from ijfs_engine import describe_key

    ring = app.repository().keyring()
    found, damaged = [describe_key(file) for file in ring.all()], ring.damaged()

    def show(out: Printer) -> None:
        rows = [
            [str(one["name"]), text.ago(one["created_ns"]), ", ".join(one["recipients"]) or "a passphrase"]
            for one in found
        ]
        out.table(COLUMNS, rows)
        for name in damaged:
            out.line(("damaged: ", "yellow"), f"keys/{name} opens nothing any more")

    return Answer({"keys": found, "damaged": damaged}, show, names=[str(one["name"]) for one in found])


@verb("keyring add")
@click.argument("name")
@passphrases.way_options
def add(app: App, name: str, passphrase_file: Path | None, recipients: Sequence[str]) -> Answer:
    """Make one more way in, called NAME: a new passphrase, or recipients.

    The passphrase is asked for at a terminal. Remotes learn of it with the next push.
    """
    ring = app.repository().keyring()
    if recipients:
        ring.add_recipients(name, recipients)
    else:
        ring.add_passphrase(name, passphrases.new(app, passphrase_file, name))
    return Answer({"name": name}, lambda out: out.line("key ", (name, "bold green"), " opens it from now on"))


@verb("keyring remove")
@click.argument("name")
@click.option("-f", "--force", is_flag=True, help="Even if no other key is known to open the repository.")
def remove(app: App, name: str, force: bool) -> Answer:
    """Close the way in that is called NAME, here and at the remotes that answer.

    Who has used it may have kept what it opens: `ijfs keyring rotate` has new bytes sealed otherwise.
    The key that opens the repository now is not removed before another one has: give that one's passphrase.
    """
    repository = app.repository()
    repository.keyring().remove(name, force=force)
    left = _removed_at_remotes(app, repository, [name])

    def show(out: Printer) -> None:
        out.line("key ", (name, "bold green"), " opens it no longer")

    return Answer({"name": name, "left_at": left}, show)


def _removed_at_remotes(app: App, repository: Repository, names: list[str]) -> list[str]:
    """Take ways in out of the remotes; those that did not answer."""
    from ijfs_engine.errors import IjfsError

    left = []
    for remote in repository.remotes.all() if names else ():
        try:
            repository.remotes.remove_keys(remote.name, names)
        except IjfsError as error:
            app.warn(f"{remote.name} still has {', '.join(names)}: {error}")
            left.append(remote.name)
    return left


@verb("keyring rotate")
def rotate(app: App) -> Answer:
    """Seal everything here anew with a new key, as after one has leaked. No save may run meanwhile.

    Ways in of recipients stay, and the passphrase that is given; other passphrases are dropped: add them again. What a
    remote holds stays as it was sealed. An interrupted rotation is finished by the next.
    """
    repository = app.repository()
    remotes = [remote.name for remote in repository.remotes.all()]
    passphrase = passphrases.known(app)
    with app.progress("rotate") as reporter, app.interruptible(lambda: "`ijfs keyring rotate` goes on with it"):
        done = repository.keyring().rotate(passphrase, keep_old=bool(remotes), progress=reporter)
    left = _removed_at_remotes(app, repository, done.dropped)

    def show(out: Printer) -> None:
        out.line("everything here is sealed anew: ", (text.count(done.packs, "pack"), "bold"), " written")
        if done.dropped:
            out.line(("  dropped: ", "yellow"), ", ".join(done.dropped), "; `ijfs keyring add` makes them again")
        if remotes:
            out.line(("  old key: ", "yellow"), f"kept, because {', '.join(remotes)} has what it sealed")
        for name in done.damaged:
            out.line(("  damaged: ", "yellow"), f"{name} stays as it was; `ijfs fsck --repair`, then rotate again")

    data = {
        "dropped": done.dropped,
        "packs": done.packs,
        "kept_old": done.kept_old,
        "damaged": done.damaged,
        "left_at": left,
    }
    return Answer(data, show)


@verb("keyring forget")
def forget(app: App) -> Answer:
    """Let go of the keys that the kernel keeps for you: they are asked for again. Programs that live have theirs."""
    kept = app.repository().keyring().forget()
    return Answer({"kept": kept}, lambda out: out.line("forgotten" if kept else "the kernel kept none"))


for command in (list_, add, remove, rotate, forget):
    keyring.add_command(command)
COMMANDS = {"keyring": keyring}
