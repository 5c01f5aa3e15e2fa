"""Passphrases of encrypted repositories: asked for at a terminal, or given by a file or the environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.cli.app import App

_F = TypeVar("_F", bound=Callable[..., Any])


def way_options(function: _F) -> _F:
    """The options that say what a new key is."""
    function = click.option(
        "--recipient", "recipients", multiple=True, metavar="KEY", help="A public key, age1… or ssh-…; may be repeated."
    )(function)
    return click.option(
        "--passphrase-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Has the new passphrase in its first line.",
    )(function)


def ask_at_terminal(app: App) -> None:
    """Have the engine ask the person who typed the verb, where there is one."""
    from ijfs_engine import ask_by

    if app.can_ask:
        ask_by(lambda where: str(click.prompt(f"passphrase of {where}", hide_input=True, err=True)))


def new(app: App, file: Path | None, name: str) -> str:
    """A new passphrase. IjfsError where there is none."""
    if file is not None:
        return (file.read_text(errors="surrogateescape").splitlines() or [""])[0]
    if not app.can_ask:
        raise IjfsError("there is no terminal to ask for a passphrase", hint="give --passphrase-file, or --recipient")
    prompt = f"new passphrase for the key {name}"
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt="once more", err=True))


def first(app: App, file: Path | None, name: str) -> str:
    """That of a repository that is being made: as `new`, or what the environment gives."""
    from ijfs_engine import passphrase_given

    given = passphrase_given() if file is None else None
    return given if given is not None else new(app, file, name)


def known(app: App) -> str | None:
    """The one that opens the repository; None where nobody can say."""
    from ijfs_engine import passphrase_given

    given = passphrase_given()
    if given is None and app.can_ask:
        prompt = "passphrase that is to stay (none: keys of recipients alone)"
        given = click.prompt(prompt, hide_input=True, default="", show_default=False, err=True) or None
    return given
