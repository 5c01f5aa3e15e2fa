"""Who watches an instance, and what they are told. Held by state.py; the verb is server.py's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ijfs.live.model.protocol import Emit, Happened


class Watchers:
    """Clients of the verb `watch`; they hear of everything in its order."""

    def __init__(self) -> None:
        self._emits: list[Emit] = []

    def tell(self, happened: Happened) -> None:
        """Tell all. Never waits: what is told is in line at each client's connection."""
        for emit in self._emits:
            emit(happened)

    @contextlib.contextmanager
    def listening(self, emit: Emit) -> Iterator[None]:
        """Tell this one, too, for a while."""
        self._emits.append(emit)
        try:
            yield
        finally:
            self._emits.remove(emit)
