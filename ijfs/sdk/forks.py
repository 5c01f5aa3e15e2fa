"""Live copies as the SDK has them: forked together, each with variables of its own. Called by Box and Snapshot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live.client import api as client
from ijfs.sdk import calls
from ijfs.sdk.box import Box, Env
from ijfs.sdk.calls import CallTimeoutError
from ijfs_engine.errors import TargetDiedError

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo, OnEvent
    from ijfs.live.model.records import Idle, Limits
    from ijfs.sdk.snapshots import Snapshot

TELL_S = 10.0
"""How long is waited until a kernel has taken what it is told over; a few milliseconds are usual. One in the middle of
a cell takes it when that is done."""

_TELL = """
import os, sys
os.environ.update(env)
for name, function in (("random", "seed"), ("numpy.random", "seed"), ("torch", "manual_seed")):
    if seed is not None and name in sys.modules:
        getattr(sys.modules[name], function)(seed)
"""
"""What a kernel is told, as a cell that leaves no name behind."""


def fork(
    repo: Path,
    source: str,
    count: int,
    *,
    names: Sequence[str],
    env: Sequence[Env],
    message: str,
    on_demand: bool,
    same_random: bool,
    limits: Limits,
    idle: Idle | None,
    secrets: Env,
    ephemeral: bool,
    seed: int | None,
    timeout: float | None,
    on_event: OnEvent | None,
    wish: str = "",
) -> list[Box]:
    """Copies of a live program or a snapshot; api.fork says how."""
    wanted = len(names) or max(count, len(env))

    def call() -> list[InstanceInfo]:
        return client.fork(
            repo,
            source,
            names,
            count=wanted,
            message=message,
            on_demand=on_demand,
            same_random=same_random,
            limits=limits,
            idle=idle,
            secrets=secrets,
            ephemeral=ephemeral,
            env=env,
            wish=wish,
            on_event=on_event,
        )

    infos = calls.within(timeout, "the fork", call)
    boxes = [Box(repo, info.name) for info in infos]
    seeds = [None if seed is None else seed + number for number in range(len(boxes))]
    each = zip(boxes, infos, env or [{}] * len(boxes), seeds, strict=False)
    told = [
        (box, own, drawn) for box, info, own, drawn in each if (own or drawn is not None) and is_python_kernel(info)
    ]
    if told:
        with ThreadPoolExecutor(len(told)) as pool:
            list(pool.map(lambda all_of_it: tell(*all_of_it), told))
    return boxes


def is_python_kernel(info: InstanceInfo) -> bool:
    """Whether cells of it are Python's."""
    return info.kind == "kernel" and any("ipykernel" in word for word in info.argv)


def tell(box: Box, env: Mapping[str, str], seed: int | None = None) -> None:
    """Have a Python kernel's `os.environ` hold its own variables, and its generators begin with `seed`. A kernel that
    is busy does it when it is not; of one that has ended, whoever uses it next is told."""
    code = f"exec({_TELL!r}, {{'env': {dict(env)!r}, 'seed': {seed!r}}})"
    with contextlib.suppress(CallTimeoutError, TargetDiedError):
        calls.within(TELL_S, "what a copy is told", partial(box.run, code))


@contextmanager
def branches(source: Snapshot | Box, count: int = 2, *, env: Sequence[Env] = ()) -> Iterator[list[Box]]:
    """Live copies for the length of a block: at its end those that were not kept (`Box.keep`) are ended and forgotten.

    What one of them saved stays. `source` is a snapshot, or a live program, which is saved first.
    """
    boxes = source.fork(count, env=env)
    try:
        yield boxes
    finally:
        discard_all([box for box in boxes if not box.kept])


def discard_all(boxes: Sequence[Box]) -> None:
    """End and forget them, all at once."""
    with ThreadPoolExecutor(max(1, len(boxes))) as pool:
        list(pool.map(Box.discard, boxes))
