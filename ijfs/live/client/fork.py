"""fork: several live instances of one snapshot, started at once. Called by api.py, whose `fork` documents the verb."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from ijfs.live.client.claim import Claim, claim
from ijfs.live.client.connection import OnEvent
from ijfs.live.client.instances import RepoPath, connect, free_names, is_running
from ijfs.live.client.spawn import begin, spawn_keepers
from ijfs.live.errors import CommandError, InstanceExistsError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import Event, RestoreArguments
from ijfs.live.model.records import Idle, InstanceInfo, Limits
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
    on_demand: bool,
    message: str,
    gpus: Sequence[str],
    same_random: bool,
    env: Sequence[Mapping[str, str]] = (),
    wish: str,
    limits: Limits,
    ephemeral: bool,
    secrets: Mapping[str, str],
    idle: Idle | None,
    on_event: OnEvent | None,
) -> list[InstanceInfo]:
    """Claim the siblings' names, save `source` where it is live, restore them all at once; as api.fork says. Where one
    of the names cannot be had nothing is done, and nothing saved."""
    with contextlib.ExitStack() as claims:
        claimed = _claimed(repo, wish, names, count, claims)
        chosen = [claim.paths.root.name for claim in claimed]
        given = _given(chosen, env)
        first = RestoreArguments(
            snapshot=_snapshot_of(repo, source, message, on_event),
            eager=eager,
            on_demand=on_demand,
            gpus=tuple(gpus),
            siblings=len(claimed),
            same_random=same_random,
            files="private",
            limits=limits,
            ephemeral=ephemeral,
            secrets=dict(secrets),
            idle=idle,
        )
        sockets = spawn_keepers(claimed, lazy=not eager)
        firsts = [msgspec.structs.replace(first, env=given[name]) for name in chosen]
        outcomes = _begun([claim.paths for claim in claimed], sockets, firsts, _one_at_a_time(on_event))
        return _judge(dict(zip(chosen, outcomes, strict=True)))


def _claimed(repo: RepoPath, wish: str, names: Sequence[str], count: int, claims: contextlib.ExitStack) -> list[Claim]:
    """The names that are asked for, or the first free ones. InstanceExistsError; the stack gives up what was had."""
    if names:
        return [claims.enter_context(claim(repo, name)) for name in names]
    found: list[Claim] = []
    while len(found) < count:
        for name in free_names(repo, wish, count - len(found)):
            with contextlib.suppress(InstanceExistsError):  # another client was quicker
                found.append(claims.enter_context(claim(repo, name)))
    return found


def _begun(
    paths: Sequence[InstancePaths],
    sockets: Sequence[socket.socket],
    firsts: Sequence[RestoreArguments],
    on_event: OnEvent | None,
) -> list[InstanceInfo | IjfsError]:
    """What came of each sibling. Who is interrupted leaves all of them: their keepers end those that are not up yet."""

    def one(paths: InstancePaths, sock: socket.socket, first: RestoreArguments) -> InstanceInfo | IjfsError:
        try:
            return begin(paths, sock, first, on_event)
        except IjfsError as error:
            return error

    with ThreadPoolExecutor(len(paths)) as pool:
        pending = pool.map(one, paths, sockets, firsts)
        try:
            return list(pending)
        except BaseException:
            for sock in sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            raise


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
