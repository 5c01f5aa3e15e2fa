"""fork: several live instances of one snapshot, started at once. Called by api.py, whose `fork` documents the verb."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ijfs.live.client.connection import OnEvent
from ijfs.live.client.instances import RepoPath, connect, free_names, is_running
from ijfs.live.client.spawn import begin, claim, spawn_keepers
from ijfs.live.errors import CommandError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import Event, RestoreArguments
from ijfs.live.model.records import InstanceInfo
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError, PartialError

_EVENTS = threading.Lock()


def fork(
    repo: RepoPath,
    source: str,
    names: Sequence[str],
    *,
    count: int,
    eager: bool,
    message: str,
    gpus: Sequence[str],
    same_random: bool,
    env: Sequence[Mapping[str, str]] = (),
    on_event: OnEvent | None,
) -> list[InstanceInfo]:
    """Save `source` where it is live, claim the siblings' names, restore them all at once; as api.fork says."""
    chosen = list(names) or free_names(repo, source, count)
    given = _given(chosen, env)
    snapshot = _snapshot_of(repo, source, message, on_event)
    outcomes: dict[str, InstanceInfo | IjfsError] = {}
    claimed: dict[str, InstancePaths] = {}
    for name in chosen:
        try:
            claimed[name] = claim(repo, name)
        except IjfsError as error:
            outcomes[name] = error
    sockets = spawn_keepers(list(claimed.values()), lazy=not eager) if claimed else []
    first = RestoreArguments(
        snapshot=snapshot, eager=eager, gpus=tuple(gpus), siblings=len(claimed), same_random=same_random
    )

    def one(paths: InstancePaths, sock: socket.socket) -> InstanceInfo | IjfsError:
        try:
            mine = msgspec.structs.replace(first, env=given[paths.root.name])
            return begin(paths, sock, mine, _one_at_a_time(on_event))
        except IjfsError as error:
            return error

    with ThreadPoolExecutor(max(1, len(claimed))) as pool:
        outcomes.update(zip(claimed, pool.map(one, claimed.values(), sockets), strict=True))
    return _judge({name: outcomes[name] for name in chosen})


def _given(names: Sequence[str], env: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Each sibling's own variables."""
    if env and len(env) != len(names):
        raise CommandError(f"variables were given for {len(env)} siblings, and there are to be {len(names)}")
    return {name: dict(own) for name, own in zip(names, env or [{}] * len(names), strict=True)}


def _one_at_a_time(on_event: OnEvent | None) -> OnEvent | None:
    """The siblings' events come from a thread each; the caller's function need not know."""
    if on_event is None:
        return None
    called = on_event

    def locked(event: Event) -> None:
        with _EVENTS:
            called(event)

    return locked


def _snapshot_of(repo: RepoPath, source: str, message: str, on_event: OnEvent | None) -> str:
    """The id of the snapshot to start from. A live instance is saved first; anything else names a snapshot already,
    and every sibling has to come from the same one, wherever a branch of that name may move meanwhile."""
    if not is_running(repo, source):
        with Repository.open(Path(repo)) as repository:
            return repository.resolve(source).hex()
    with connect(repo, source, on_event=on_event) as keeper:
        return keeper.save(message or f"fork of {source}").snapshot


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
