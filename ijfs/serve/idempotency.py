"""A call that is repeated with the same `Idempotency-Key` is answered as the first time, and done once.

What was answered is remembered for a while, in memory: after a restart of the server a repeated call is a new one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import Response

from ijfs.serve.errors import ApiError

KEPT_S = 3600.0
MOST = 10_000
"""Answers that are remembered at most; the oldest go first."""
MOST_LENGTH = 255


@dataclass
class _Remembered:
    """A call and its answer, or that it is under way."""

    request: bytes
    answer: asyncio.Future[Response]
    at: float


class Repeats:
    """The answers of one server, by who called and the key of the call."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], _Remembered] = {}

    async def once(
        self, owner: str, key: str | None, request: bytes, call: Callable[[], Awaitable[Response]]
    ) -> Response:
        """What `call` answers, the first time. ApiError 422 where the same key came with another request. A call that
        failed is not remembered: it may be tried again."""
        if key is None:
            return await call()
        if not 1 <= len(key) <= MOST_LENGTH:
            raise ApiError(400, f"an Idempotency-Key has 1 to {MOST_LENGTH} characters")
        self._forget()
        known = self._answers.get((owner, key))
        if known is not None and known.request != request:
            raise ApiError(422, "this Idempotency-Key came with another request before")
        if known is not None:
            return await asyncio.shield(known.answer)
        made = _Remembered(request, asyncio.get_running_loop().create_future(), time.monotonic())
        self._answers[owner, key] = made
        # Done to its end whether or not this client stays: its repetition is to find the answer.
        asyncio.ensure_future(self._fill((owner, key), made, call))  # noqa: RUF006 (the future is kept by `made`)
        return await asyncio.shield(made.answer)

    async def _fill(self, which: tuple[str, str], made: _Remembered, call: Callable[[], Awaitable[Response]]) -> None:
        try:
            made.answer.set_result(await call())
        except Exception as error:
            self._answers.pop(which, None)
            made.answer.set_exception(error)
            made.answer.exception()  # looked at, where no client is left to do it

    def _forget(self) -> None:
        now = time.monotonic()
        while self._answers:
            which, oldest = next(iter(self._answers.items()))
            if now - oldest.at < KEPT_S and len(self._answers) < MOST:
                return
            del self._answers[which]
