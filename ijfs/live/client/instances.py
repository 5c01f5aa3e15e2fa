"""The instances of a repository: listed, described, connected to, forgotten. For api.py, fork.py and spawning verbs."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain, islice
from itertools import count as count_up

import msgspec

from ijfs.live.client.connection import KeeperClient, OnEvent
from ijfs.live.client.spawn import begin, spawn_keepers
from ijfs.live.errors import InstanceExitedError, KeeperError, NoInstanceError
from ijfs.live.model.paths import BadNameError, InstancePaths, live_directory
from ijfs.live.model.protocol import AdoptArguments, Arguments, RestoreArguments
from ijfs.live.model.record_file import info_of, read_record
from ijfs.live.model.records import LOST_WITH_KEEPER, Base, InstanceInfo
from ijfs.live.pager.account import progress_of
from ijfs.live.process import procfs
from ijfs.live.process.keeper_lock import keeper_ended
from ijfs_engine.errors import LockedError

ADOPT_LIMIT_S = 10.0
"""How long an instance may be between two keepers."""

RepoPath = str | os.PathLike[str]


def list_instances(repo: RepoPath) -> list[InstanceInfo]:
    """All instances of a repository by name, ended ones included; a keeper that does not answer is not waited for."""
    directory = live_directory(repo)
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir()) if directory.is_dir() else []
    found = []
    for name in names:
        with contextlib.suppress(NoInstanceError):
            found.append(describe(repo, name))
    return found


def describe(repo: RepoPath, name: str) -> InstanceInfo:
    """One instance: what its keeper says, or, without one, what its record and /proc say."""
    paths = InstancePaths.of(repo, name)
    record = read_record(paths)
    if record.status == "running":
        gone = (KeeperError, InstanceExitedError, OSError)
        with contextlib.suppress(*gone), KeeperClient.open(paths, timeout=2.0) as keeper:
            return keeper.status()
        record = read_record(paths)  # it may have ended just now, and its keeper said how
    alive = procfs.is_alive(record.program)
    if record.status == "running" and not alive:
        record = msgspec.structs.replace(record, status="exited", note=record.note or "ended without a keeper")
    if record.saving and not procfs.is_alive(record.keeper):
        record = msgspec.structs.replace(record, saving=0, save_error=record.save_error or LOST_WITH_KEEPER)
    keeper_running = procfs.is_alive(record.keeper)
    if record.status == "running" and record.pager is not None:
        progress = progress_of(paths.sandbox(record.generation).criu, record.pager)
        return info_of(paths, record, keeper_running=keeper_running, memory=progress.share, damage=progress.damage)
    return info_of(paths, record, keeper_running=keeper_running)


def free_name(repo: RepoPath, wish: str) -> str:
    """A name for a new instance: the wish, else the wish with the first free number behind it. An ended one's is
    free."""
    base = _sound(os.path.basename(wish))
    taken = {info.name for info in list_instances(repo) if info.status != "exited"}
    return next(name for name in chain([base], _numbered(base, 2)) if name not in taken)


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
        return read_record(InstancePaths.of(repo, name)).base
    except NoInstanceError:
        return None


def is_running(repo: RepoPath, name: str) -> bool:
    """Whether an instance of that name has a program that runs."""
    try:
        record = read_record(InstancePaths.of(repo, name))
    except (NoInstanceError, BadNameError):  # a snapshot's name may be none that an instance can have
        return False
    return procfs.is_alive(record.program)


def connect(repo: RepoPath, name: str, *, on_event: OnEvent | None = None) -> KeeperClient:
    """The keeper of a live instance. Where it was killed, a new one adopts the program and `on_event` gets a notice."""
    paths = InstancePaths.of(repo, name)
    record = read_record(paths)
    if not procfs.is_alive(record.program):
        raise InstanceExitedError(f"the program of `{name}` has ended")
    deadline = time.monotonic() + ADOPT_LIMIT_S
    while True:
        with contextlib.suppress(KeeperError):
            return KeeperClient.open(paths, on_event=on_event)
        try:
            spawned(paths, AdoptArguments(), on_event)
        except LockedError:  # another client's new keeper was quicker, or the old one is not quite gone
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def remove(repo: RepoPath, name: str) -> None:
    """Forget an instance whose program has ended: its directory goes, after its keeper. LockedError while it runs."""
    paths = InstancePaths.of(repo, name)
    if procfs.is_alive(read_record(paths).program):
        raise LockedError(f"`{name}` is running", hint=f"`ijfs stop {name}` ends it")
    if not keeper_ended(paths):
        raise LockedError(f"the keeper of `{name}` has not ended", hint=f"its log is {paths.keeper_log}")
    shutil.rmtree(paths.root)


def spawned(paths: InstancePaths, first: Arguments[InstanceInfo], on_event: OnEvent | None) -> InstanceInfo:
    """Spawn a keeper whose first request is this one; its answer."""
    (sock,) = spawn_keepers([paths], lazy=isinstance(first, RestoreArguments) and not first.eager)
    return begin(paths, sock, first, on_event)
