"""What a store asks of places other than its own packs: object stores, whose packs have numbers of their own.

`Repository` gives its store one (remote/elsewhere.py) that is opened when something is asked for that is not here. This
module is the promise between the two: the store knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

FAR: Final = 1 << 31
"""Packs elsewhere have numbers from here on. A repository would hold 10^18 bytes before its own packs had them."""


class OpenFile(Protocol):
    """A file that stays open as long as somebody has this."""

    fd: int


class Elsewhere(Protocol):
    """Frames that are not here. Safe to use from several threads; a forked child makes its own."""

    def rows(self, table: bytes, ids: Sequence[bytes]) -> list[bytes | None]:
        """Places (`Place.encode`) of chunks or objects; None for what is nowhere. StorageError."""

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a pack. FileNotFoundError where it is gone, StorageError."""

    def files(self, wanted: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> list[OpenFile | None]:
        """For each pack a file that holds the (offset, length) that are wanted of it, at their offsets; None where the
        pack is gone. StorageError."""

    def distrust(self, number: int, offset: int, length: int) -> None:
        """Bytes that were given were not right: give them from their source the next time."""

    def close(self) -> None:
        """Let go of everything."""
