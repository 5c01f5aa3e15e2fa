"""fork: several live instances of one snapshot, started at once; called by ijfs.live.client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count as count_up

from ijfs.live import client
from ijfs.live.client import OnEvent, RepoPath
from ijfs.live.paths import InstancePaths
from ijfs.live.records import InstanceInfo
from ijfs_engine.errors import IjfsError, PartialError

# Restores started at the same time; more than the CPUs only makes all of them slower to answer.
AT_ONCE = 8


def fork(
    repo: RepoPath,
    source: str,
    names: Sequence[str],
    *,
    count: int,
    eager: bool,
    message: str,
    gpus: Sequence[str],
    on_event: OnEvent | None,
) -> list[InstanceInfo]:
    """What client.fork promises."""
    chosen = list(names) or _free_names(repo, source, count)
    snapshot = _snapshot_of(repo, source, message, on_event)

    def one(name: str) -> InstanceInfo | IjfsError:
        try:
            return client.restore(repo, snapshot, name, eager=eager, gpus=gpus, on_event=on_event)
        except IjfsError as error:
            return error

    with ThreadPoolExecutor(min(AT_ONCE, len(chosen))) as pool:
        outcomes = dict(zip(chosen, pool.map(one, chosen), strict=True))
    return _judge(outcomes)


def _snapshot_of(repo: RepoPath, source: str, message: str, on_event: OnEvent | None) -> str:
    """A live instance is saved first; anything else names a snapshot already."""
    if not client.is_running(repo, source):
        return source
    with client.connect(repo, source, on_event=on_event) as keeper:
        return keeper.save(message or f"fork of {source}").snapshot


def _free_names(repo: RepoPath, source: str, count: int) -> list[str]:
    base = "".join(c if c.isalnum() or c in "._-" else "-" for c in source).strip("._-")[:48] or "fork"
    free = _unused(repo, base)
    return [next(free) for _ in range(count)]


def _unused(repo: RepoPath, base: str) -> Iterator[str]:
    for number in count_up(1):
        name = f"{base}-{number}"
        if not InstancePaths.of(repo, name).root.exists():
            yield name


def _judge(outcomes: dict[str, InstanceInfo | IjfsError]) -> list[InstanceInfo]:
    up = [info for info in outcomes.values() if isinstance(info, InstanceInfo)]
    failed = {name: error for name, error in outcomes.items() if isinstance(error, IjfsError)}
    if failed and not up:
        raise next(iter(failed.values()))
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        running = ", ".join(info.name for info in up)
        raise PartialError(f"not every sibling came up ({reasons}); running: {running}")
    return up
