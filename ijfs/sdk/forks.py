"""Live copies as the SDK has them: forked together, each with variables of its own. Called by Box and Snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live.client import api as client
from ijfs.sdk import calls
from ijfs.sdk.box import Box, Env

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo, OnEvent
    from ijfs.sdk.snapshots import Snapshot

REFRESH_S = 60.0
"""How long a kernel gets to take its variables over; a few milliseconds are usual."""


def fork(
    repo: Path,
    source: str,
    count: int,
    *,
    names: Sequence[str],
    env: Sequence[Env],
    message: str,
    same_random: bool,
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
            same_random=same_random,
            env=env,
            wish=wish,
            on_event=on_event,
        )

    infos = calls.within(timeout, "the fork", call)
    boxes = [Box(repo, info.name) for info in infos]
    told = [(box, own) for box, info, own in zip(boxes, infos, env, strict=False) if own and is_python_kernel(info)]
    if told:
        with ThreadPoolExecutor(len(told)) as pool:
            list(pool.map(lambda pair: refresh(*pair), told))
    return boxes


def is_python_kernel(info: InstanceInfo) -> bool:
    """Whether cells of it are Python's."""
    return info.kind == "kernel" and any("ipykernel" in word for word in info.argv)


def refresh(box: Box, env: Mapping[str, str]) -> None:
    """Have a Python kernel's `os.environ` hold its own variables; it leaves no name behind."""
    box.run(f"__import__('os').environ.update({dict(env)!r})", timeout=REFRESH_S)


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
