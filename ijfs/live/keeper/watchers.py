"""Who watches an instance, and what they are told. Held by state.py; the verb is server.py's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ijfs.live.model.protocol import Emit, Happened


class Watchers:
    """Clients of the verb `watch`; they hear of everything in its order."""

    def __init__(self) -> None:
        self._emits: list[Emit] = []
        self._editors: list[Emit] = []

    def tell(self, happened: Happened) -> None:
        """Tell all. Never waits: what is told is in line at each client's connection."""
        for emit in self._emits:
            emit(happened)

    @property
    def give_documents(self) -> bool:
        """Whether somebody can give the notebook as an editor has it."""
        return bool(self._editors)

    def ask(self, happened: Happened) -> None:
        """Tell those who can give documents."""
        for emit in self._editors:
            emit(happened)

    @contextlib.contextmanager
    def listening(self, emit: Emit, *, documents: bool) -> Iterator[None]:
        """Tell this one, too, for a while."""
        lists = [self._emits, self._editors] if documents else [self._emits]
        for each in lists:
            each.append(emit)
        try:
            yield
        finally:
            for each in lists:
                each.remove(emit)
