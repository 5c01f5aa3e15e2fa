"""How much one key may ask for at a time. Refused calls may be repeated: the answer says so."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from ijfs.serve.errors import ApiError
from ijfs.serve.keys import KeyRecord


class Limits:
    """What is under way, by key."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    @contextlib.contextmanager
    def call(self, key: KeyRecord) -> Iterator[None]:
        """Around a request. ApiError 429."""
        if self._calls[key.name] >= key.calls:
            raise ApiError(429, f"key `{key.name}` has {key.calls} calls under way, and may have no more", retry=True)
        self._calls[key.name] += 1
        try:
            yield
        finally:
            self._calls[key.name] -= 1


def require_room(key: KeyRecord, there: int, wanted: int) -> None:
    """For sandboxes that are asked for. ApiError 429."""
    if there + wanted > key.sandboxes:
        raise ApiError(429, f"key `{key.name}` has {there} sandboxes, and may have {key.sandboxes}")
