"""Running what blocks beside the keeper's loop, and hearing from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

from ijfs.live.model.protocol import Emit, PhaseBegan

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run what blocks in a thread; it is never abandoned, since it holds processes and mounts."""
    return await trio.to_thread.run_sync(functools.partial(function, *args, **kwargs))


def phase_events(emit: Emit) -> Callable[[str], None]:
    """Events that say which phase of a verb begins, from what is told its name."""
    return lambda name: emit(PhaseBegan(name))
