"""A cache bounded in bytes that drops what was used longest ago. Used by the reader for chunks and leaves."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

V = TypeVar("V")


class ByteLru(Generic[V]):
    """At most `limit` bytes of values by id; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        """Bytes held now."""
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> V | None:
        """The value, now the last to be dropped; None if it is not here."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, V]:
        """Those that are here, under one lock."""
        found = {}
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    found[key] = entry[0]
        return found

    def put(self, key: bytes, value: V, size: int) -> None:
        """Keep a value of `size` bytes, if it fits at all."""
        if size > self.limit:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self.used -= old[1]
            self._entries[key] = value, size
            self.used += size
            while self.used > self.limit:
                _, (_, dropped) = self._entries.popitem(last=False)
                self.used -= dropped

    def __contains__(self, key: bytes) -> bool:
        with self._lock:
            return key in self._entries

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self.used = 0
