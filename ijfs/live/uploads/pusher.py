"""The process that sends what is saved to its remotes: one for each repository, from a save until all is there.

    python -m ijfs.live.uploads.pusher REPOSITORY

A store that does not answer is asked again, after longer and longer pauses, for a day; the next save begins anew. It
can be killed at any moment: a push that broke off goes on where it stopped, and nothing else knows what is to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from ijfs.live.uploads import followed
from ijfs.live.uploads.followed import Failure, Waiting
from ijfs.live.uploads.reach import to_push
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

PAUSE_S: Final = 2.0
LONGEST_S: Final = 300.0
_LOOKED_AT_S: Final = 1.0
"""Who only looks whether it runs has the lock for some microseconds: it is tried for longer."""
_LOOK_S: Final = 0.02
GIVES_UP_S: Final = 86_400.0


def wake(repo: Path) -> None:
    """Have it run, unless it does; it outlives who woke it. Where that fails, the next save does."""
    with contextlib.suppress(OSError):
        _wake(repo)


def _wake(repo: Path) -> None:
    for ended in [one for one in _begun if one.poll() is not None]:
        _begun.remove(ended)
    if not is_at_work(repo):
        _begun.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(repo)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        )


_begun: Final[list[subprocess.Popen[bytes]]] = []
"""Those that this process woke: it is told of their ends."""


def run(repo: Path, pause: Callable[[float], None] = time.sleep) -> None:
    """Send until all is there. A save that finds this at work counts on it: so it looks again once it has let go."""
    while True:
        with _locked(repo, _LOOKED_AT_S) as is_free:
            if not is_free or not _sent_all(repo, pause):
                return
        if not _is_anything(repo):
            return


def _sent_all(repo: Path, pause: Callable[[float], None]) -> bool:
    """Whether it is; not where it was given up."""
    wait_s, began = PAUSE_S, time.monotonic()
    while time.monotonic() - began < GIVES_UP_S:
        with contextlib.suppress(IjfsError), Repository.open(repo) as repository:
            todo = followed.waiting(repository)
            if not todo:
                followed.note_failures(repo, {})
                return True
            arrived, failed = _send(repository, todo)
            followed.note_failures(repo, failed)
            if arrived:
                wait_s, began = PAUSE_S, time.monotonic()
            if not failed:
                continue
        if not (repo / "format").exists():
            return False
        pause(wait_s)
        wait_s = min(2 * wait_s, LONGEST_S)
    return False


def _send(repository: Repository, todo: list[Waiting]) -> tuple[int, dict[str, Failure]]:
    """How many remotes have what they are to have, and what the others failed with."""
    arrived, failed, before = 0, {}, followed.failures(repository.path)
    for remote, those in groupby(todo, lambda one: one.remote):
        try:
            refs, also = to_push(repository, [one.branch for one in those])
            repository.remotes.push(remote, refs, also=also)
            arrived += 1
        except (IjfsError, OSError) as error:
            since = before[remote].since_ns if remote in before else time.time_ns()
            failed[remote] = Failure(str(error), since)
    return arrived, failed


def _is_anything(repo: Path) -> bool:
    with contextlib.suppress(IjfsError), Repository.open(repo) as repository:
        return bool(followed.waiting(repository))
    return False


def is_at_work(repo: Path) -> bool:
    """Whether it runs. OSError."""
    with _locked(repo) as is_free:
        return not is_free


@contextlib.contextmanager
def _locked(repo: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Whether the lock could be had within a while; it is held meanwhile."""
    deadline = time.monotonic() + wait_s
    fd = os.open(followed.lock_of(repo), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not (is_free := _taken(fd)) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        yield is_free
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    run(Path(sys.argv[1]))
