"""The instances of a repository: listed, described, connected to, forgotten. For api.py, fork.py and spawning verbs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice
from itertools import count as count_up
from typing import TypeVar

import msgspec

from ijfs.live.client import ended
from ijfs.live.client.claim import Claim
from ijfs.live.client.connection import KeeperClient, OnEvent
from ijfs.live.client.record import record_of
from ijfs.live.client.spawn import begin, spawn_keepers
from ijfs.live.errors import InstanceExistsError, InstanceExitedError, KeeperError, NoInstanceError
from ijfs.live.model.paths import BadNameError, InstancePaths, live_directory
from ijfs.live.model.protocol import AdoptArguments, Arguments, RestoreArguments
from ijfs.live.model.record_file import info_of
from ijfs.live.model.records import LOST_WITH_KEEPER, Base, InstanceInfo
from ijfs.live.pager.account import progress_of
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import KeeperLock, keeper_ended
from ijfs.live.sandbox import cleanup
from ijfs_engine.errors import CorruptError, IjfsError, LockedError

ADOPT_LIMIT_S = 10.0
"""How long an instance may be between two keepers."""

MOST_ADOPTIONS = 3
"""New keepers that a command has made for a program whose keepers are killed one after the other."""

RepoPath = str | os.PathLike[str]
T = TypeVar("T")


def list_instances(repo: RepoPath) -> list[InstanceInfo]:
    """All instances of a repository by name, ended ones included; a keeper that does not answer is not waited for. Of
    those whose record is damaged `damaged_instances` has the names."""
    found = []
    for name in _names(repo):
        with contextlib.suppress(NoInstanceError, BadNameError, CorruptError):
            found.append(describe(repo, name))
    return found


def damaged_instances(repo: RepoPath) -> dict[str, CorruptError]:
    """Instances of which nobody knows any more what they are: their record is damaged, and no keeper answers."""
    found = {}
    for name in _names(repo):
        try:
            record_of(InstancePaths.of(repo, name))
        except CorruptError as error:
            found[name] = error
        except (NoInstanceError, BadNameError):
            continue
    return found


def _names(repo: RepoPath) -> list[str]:
    directory = live_directory(repo)
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir()) if directory.is_dir() else []


def describe(repo: RepoPath, name: str) -> InstanceInfo:
    """One instance: what its keeper says, or, without one, what its record and /proc say."""
    paths = InstancePaths.of(repo, name)
    record = record_of(paths)
    if record.status == "running":
        gone = (KeeperError, InstanceExitedError, OSError)
        with contextlib.suppress(*gone), KeeperClient.open(paths, timeout=2.0) as keeper:
            return keeper.status()
        record = record_of(paths)  # it may have ended just now, and its keeper said how
    alive = procfs.is_alive(record.program)
    if record.status == "running" and not alive:
        how = "ended without a keeper" if record.boot_id == procfs.boot_id() else "ended with the machine"
        record = msgspec.structs.replace(record, status="exited", note=record.note or how)
    if record.saving and not procfs.is_alive(record.keeper):
        record = msgspec.structs.replace(record, saving=0, save_error=record.save_error or LOST_WITH_KEEPER)
    keeper_running = procfs.is_alive(record.keeper)
    if record.status == "running" and record.pager is not None:
        progress = progress_of(paths.sandbox(record.generation).criu, record.pager)
        return info_of(paths, record, keeper_running=keeper_running, memory=progress.share, damage=progress.damage)
    return info_of(paths, record, keeper_running=keeper_running)


def named(repo: RepoPath, name: str | None, wish: str, start: Callable[[str], T]) -> T:
    """What `start` makes of the name that was asked for or, where none was, of the first free one after the wish. One
    that somebody else has taken meanwhile is passed over."""
    if name is not None:
        return start(name)
    taken: set[str] = set()
    while True:
        chosen = free_name(repo, wish, but=taken)
        try:
            return start(chosen)
        except InstanceExistsError:
            taken.add(chosen)


def free_name(repo: RepoPath, wish: str, *, but: Collection[str] = ()) -> str:
    """A name for a new instance: the wish, else the wish with the first free number behind it. An ended one's is free
    where none of its files would be missed."""
    base = _sound(os.path.basename(wish))
    return next(name for name in chain([base], _numbered(base, 2)) if name not in but and _is_free(repo, name))


def _is_free(repo: RepoPath, name: str) -> bool:
    paths = InstancePaths.of(repo, name)
    if not paths.root.exists():
        return True
    try:
        if procfs.is_alive(record_of(paths).program):
            return False
        ended.refuse_if_missed(paths)
    except IjfsError:  # files are missed, or it is just being made
        return False
    return True


def free_names(repo: RepoPath, wish: str, count: int) -> list[str]:
    """Names for siblings: the wish with the first free numbers behind it."""
    directory = live_directory(repo)
    taken = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    return list(islice((name for name in _numbered(_sound(wish), 1) if name not in taken), count))


def _sound(wish: str) -> str:
    """What is left of a wish when only the characters of an instance's name are kept."""
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in wish)
    return kept.strip("._-")[:48] or "program"


def _numbered(base: str, start: int) -> Iterator[str]:
    return (f"{base}-{i}" for i in count_up(start))


def base_before(repo: RepoPath, name: str) -> Base | None:
    """What an ended instance of that name stood on; None where that was the machine's own root, or there is none."""
    try:
        return record_of(InstancePaths.of(repo, name)).base
    except NoInstanceError:
        return None


def is_running(repo: RepoPath, name: str) -> bool:
    """Whether an instance of that name has a program that runs."""
    try:
        record = record_of(InstancePaths.of(repo, name))
    except (NoInstanceError, BadNameError):  # a snapshot's name may be none that an instance can have
        return False
    return procfs.is_alive(record.program)


def connect(repo: RepoPath, name: str, *, on_event: OnEvent | None = None) -> KeeperClient:
    """The keeper of a live instance. Where it was killed, a new one adopts the program and `on_event` gets a notice."""
    paths = InstancePaths.of(repo, name)
    record = record_of(paths)
    if not procfs.is_alive(record.program):
        raise not_running(name, parked=record.parked_on_disk)
    deadline, killed = time.monotonic() + ADOPT_LIMIT_S, 0
    while True:
        with contextlib.suppress(KeeperError):
            return _answering(paths, on_event)
        lock = KeeperLock.take(paths)  # None: another client's new keeper was quicker, or the old one is not quite gone
        try:
            if lock is not None:
                spawned(Claim(paths, lock, begins_anew=True), AdoptArguments(), on_event)
        except KeeperError:  # killed, too, while it took over
            killed += 1
            if killed == MOST_ADOPTIONS:
                raise
        if lock is None and time.monotonic() > deadline:
            raise LockedError(f"the keeper of `{name}` does not answer", hint=f"its log is {paths.keeper_log}")
        time.sleep(0.05)


def not_running(name: str, *, parked: bool) -> InstanceExitedError:
    """What is said of an ended one that is asked for something; `parked`: on disk."""
    if parked:
        return InstanceExitedError(f"`{name}` is parked on disk", hint=f"`ijfs wake {name}` brings it back")
    return InstanceExitedError(f"the program of `{name}` has ended")


def _answering(paths: InstancePaths, on_event: OnEvent | None) -> KeeperClient:
    """A connection to a keeper that has answered on it: one that is being killed still lets clients connect."""
    keeper = KeeperClient.open(paths, on_event=on_event)
    try:
        keeper.status()
    except BaseException:
        keeper.close()
        raise
    return keeper


def remove(repo: RepoPath, name: str) -> None:
    """Forget an instance whose program has ended: its directory goes, after its keeper. LockedError while it runs.
    Where its record is damaged, what runs on its files is ended."""
    paths = InstancePaths.of(repo, name)
    if _may_run(paths):
        raise LockedError(f"`{name}` is running", hint=f"`ijfs stop {name}` ends it")
    lock = KeeperLock.take_soon(paths) if keeper_ended(paths) else None
    if lock is None:
        raise LockedError(f"the keeper of `{name}` has not ended", hint=f"its log is {paths.keeper_log}")
    with lock:
        if _may_run(paths):
            raise LockedError(f"`{name}` is running again", hint=f"`ijfs stop {name}` ends it")
        cleanup.sweep(paths)


def _may_run(paths: InstancePaths) -> bool:
    try:
        return procfs.is_alive(record_of(paths).program)
    except CorruptError:
        return False


def spawned(claim: Claim, first: Arguments[InstanceInfo], on_event: OnEvent | None) -> InstanceInfo:
    """Spawn a keeper whose first request is this one; its answer. The claim is the keeper's then, or given up."""
    with claim:
        (sock,) = spawn_keepers([claim], lazy=isinstance(first, RestoreArguments) and not first.eager)
        return begin(claim.paths, sock, first, on_event)
