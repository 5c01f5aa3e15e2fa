"""Which branches go to which remote, and what of them is not there yet.

`remotes/through/REMOTE/BRANCH` is an empty file, made before the first save of the branch: nothing is queued that could
be lost or be out of date. What is not there yet is the newest snapshot of a branch, where the remote's tree as it was
last seen does not list it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec

from ijfs.live.model.record_file import replace_file
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError, UnknownNameError

LOCAL = "local"
"""What `--storage` says of a program whose saves stay on this machine."""

ANY = "s3"
"""What it says of one whose saves go to the object store, whatever that is called here."""

_ORIGIN = "origin"


class Waiting(NamedTuple):
    """The newest snapshot (hex) of a branch that its remote does not have yet; why not, "" where nothing has failed."""

    remote: str
    branch: str
    snapshot: str
    why: str


class Failure(msgspec.Struct, frozen=True):
    """What the last push to a remote failed with, and since when nothing has arrived there."""

    message: str
    since_ns: int


def remote_of(repository: Repository, storage: str) -> str:
    """The remote that a value of `--storage` means; "" for none. UnknownNameError."""
    if storage in ("", LOCAL):
        return ""
    known = [one.name for one in repository.remotes.all()]
    if storage in known:
        return storage
    if storage == ANY and (_ORIGIN in known or len(known) == 1):
        return _ORIGIN if _ORIGIN in known else known[0]
    there = f"; there are {', '.join(known)}" if known else ""
    wanted = "no remote" if storage == ANY else f"no remote '{storage}'"
    raise UnknownNameError(f"there is {wanted} to save to{there}", hint="`ijfs remote add origin URL` makes one")


def stays(repository: Repository, branch: str, remote: str) -> str:
    """Have a branch go to a remote; why it cannot, for who saves, "" where it can. No save fails of it."""
    try:
        if remote not in {one.name for one in repository.remotes.all()}:
            return f"it stays on this machine: there is no remote '{remote}' here (`ijfs remote add {remote} URL`)"
        follow(repository.path, branch, remote)
    except (IjfsError, OSError) as error:
        return f"it stays on this machine: that it is to go to {remote} could not be written down: {error}"
    return ""


def follow(repo: Path, branch: str, remote: str) -> None:
    """Note that a branch goes to a remote, and to no other. StorageError."""
    for other, name in followed(repo):
        if name == branch and other != remote:
            _mark(repo, other, branch).unlink(missing_ok=True)
    mark = _mark(repo, remote, branch)
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(mark, b"")


def followed(repo: Path) -> list[tuple[str, str]]:
    """(remote, branch) of each."""
    place = _place(repo)
    with contextlib.suppress(FileNotFoundError):
        return sorted(
            (unquote(remote.name), unquote(mark.name))
            for remote in place.iterdir()
            if remote.is_dir()
            for mark in remote.iterdir()
            if not mark.name.endswith(".new")
        )
    return []


def waiting(repository: Repository) -> list[Waiting]:
    """What is not at its remote yet, as far as is known here. A branch or remote that is gone is followed no more."""
    return [one for one in _waiting(repository) if one is not None]


def _waiting(repository: Repository) -> Iterator[Waiting | None]:
    repo = repository.path
    marks = followed(repo)
    if not marks:
        return
    branches, remotes, failed = repository.refs.branches(), {r.name for r in repository.remotes.all()}, failures(repo)
    for remote, branch in marks:
        if remote not in remotes or branch not in branches:
            continue
        head = branches[branch]
        if repository.is_here(head) and repository.remotes.known(remote).listing(head) is None:
            failure = failed.get(remote)
            yield Waiting(remote, branch, head.hex(), failure.message if failure is not None else "")


def failures(repo: Path) -> dict[str, Failure]:
    """By remote."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(_failures(repo).read_bytes(), type=dict[str, Failure])
    return {}


def note_failures(repo: Path, now: dict[str, Failure]) -> None:
    """For the pusher alone. What cannot be written down is not shown."""
    with contextlib.suppress(IjfsError):
        replace_file(_failures(repo), msgspec.json.encode(now))


def lock_of(repo: Path) -> Path:
    """The file that the pusher has locked while it works."""
    return repo / "remotes" / "pusher.lock"


def _place(repo: Path) -> Path:
    return repo / "remotes" / "through"


def _mark(repo: Path, remote: str, branch: str) -> Path:
    return _place(repo) / quote(remote, safe="") / quote(branch, safe="")


def _failures(repo: Path) -> Path:
    return repo / "remotes" / "failures.json"
