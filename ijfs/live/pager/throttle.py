"""How much may be read besides what faults ask for. `server` tells it of faults, `fetch`'s threads ask it."""

from __future__ import annotations

import time
from enum import IntEnum
from typing import Final

_RECENT_S: Final = 0.010
"""After a fault this young, more are expected: what nobody asked for waits."""
_QUIET_S: Final = 0.100
"""In place of _RECENT_S while the working set is learned for the first time. With 10 ms, a busy machine's scheduler
looked like the end of the working set, and most of it was not learned."""
_HOLD_S: Final = 2.0
"""Longer than this after the program began to run, nothing waits for faults."""


class Pace(IntEnum):
    """How much may be read besides what faults ask for and what is in the working set."""

    NOTHING = 0
    NEAR = 1
    ALL = 2


class Throttle:
    """While faults keep coming that no working set had foreseen, what nobody asked for waits.

    Its reading and decompressing would take the processor from the faults: touching 64 MiB of 1 GiB took 2.4 s beside
    it and 0.8 s before it, on two busy cores. It also lets the faults show what is touched, where that is being
    recorded. Reads that mostly wait take no processor: with 5 ms each the same took 3.7 s when the rest was held back,
    and 2.4 s when not.
    """

    def __init__(
        self, *, bulk: bool, rest_after_s: float, learning: bool, first: bool, on_demand: bool = False
    ) -> None:
        """`bulk`: everything is wanted at once. `learning`: a working set is to be kept; `first`: none is
        known from an earlier restore. `on_demand`: what nobody asked for waits until `hurry`."""
        self._bulk = bulk
        self._on_demand = on_demand
        self._rest_after_s = rest_after_s
        self._held = Pace.NOTHING if learning else Pace.NEAR
        self._quiet_s = _QUIET_S if learning and first else _RECENT_S
        self._last_stray = 0.0

    def stray(self) -> None:
        """A page was asked for that no working set had foreseen."""
        self._last_stray = time.monotonic()

    @property
    def waits(self) -> bool:
        """Whether the pace stays as it is until somebody hurries."""
        return self._on_demand

    def hurry(self) -> None:
        """All memory is wanted from now on."""
        self._on_demand = False
        self._rest_after_s = 0.0

    def now(self, resumed: float | None, waiting: float) -> Pace:
        """`resumed`: since when the program runs. `waiting`: what share of a read is (`ReadTimes.waiting`)."""
        if self._bulk:
            return Pace.ALL
        if resumed is None:
            return Pace.NOTHING
        if self._on_demand:
            return Pace.NEAR
        return self._held if waiting <= 0.5 and self._holds_back(resumed) else Pace.ALL

    def _holds_back(self, resumed: float) -> bool:
        now = time.monotonic()
        if now - resumed < self._rest_after_s:
            return True
        return now - resumed < _HOLD_S and now - self._last_stray < self._quiet_s
