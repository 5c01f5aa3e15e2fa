"""Who asks a person for a passphrase: said once by the command line, asked by unlocking.py. Apart from that, so that a
command that opens a repository which is not encrypted does not load what unlocks others."""

from __future__ import annotations

from collections.abc import Callable

Ask = Callable[[str], str | None]
"""Asks a person for the passphrase of a repository; None where nobody can be asked."""

_ask: Ask | None = None


def ask_by(ask: Ask) -> None:
    """From now on, persons are asked so."""
    global _ask
    _ask = ask


def who_asks() -> Ask | None:
    """How persons are asked; None where nobody said so."""
    return _ask
