"""A notebook as its editor has it, asked for when a kernel is saved that nobody saved from there. Held by state.py.

Who watches the instance may say that it can give documents (a Jupyter server, for its browsers). A save that comes from
a terminal, or by itself, then asks for the document with a ticket, freezes meanwhile, and takes what came: an editor
that does not answer costs a second once, and is not waited for again until it has.
"""

from __future__ import annotations

import secrets

import trio

from ijfs.live.keeper.watchers import Watchers
from ijfs.live.model.protocol import Happened

WAIT_S = 1.0
"""From the thaw on: a browser on the same machine answers within 50 ms."""


class Documents:
    """The tickets of one keeper."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        self._given: dict[str, bytes] = {}
        self._came = trio.Event()
        self._silent = False

    def ask(self) -> str:
        """Ask for the document as it is now; a ticket to collect it by, "" where nobody can give any."""
        if not self._watchers.give_documents:
            return ""
        ticket = secrets.token_hex(8)
        self._watchers.ask(Happened("document", text=ticket))
        return ticket

    def give(self, ticket: str, document: bytes) -> None:
        """Somebody answers."""
        self._silent = False
        self._given = {ticket: document}
        self._came.set()
        self._came = trio.Event()

    async def collect(self, ticket: str) -> bytes | None:
        """What came for a ticket; None where nothing did in time."""
        if not ticket:
            return None
        with trio.move_on_after(0 if self._silent else WAIT_S):
            while ticket not in self._given:
                await self._came.wait()
        document = self._given.pop(ticket, None)
        self._silent = document is None
        return document
