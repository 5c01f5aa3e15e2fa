"""A fork that won: its branch becomes that of the program it is a fork of, and the other copies end, saved.

Called by `ijfs adopt --winner`. Nothing is lost by it: what ends is saved before, and what the branch had is set aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ijfs.live.checkpoint.snapshot_io import live_meta
from ijfs.live.client.connection import OnEvent
from ijfs.live.client.instances import connect, is_running, list_instances
from ijfs.live.errors import InstanceExitedError, NotLiveError
from ijfs_engine import ObjectId, Repository
from ijfs_engine.errors import IjfsError, PartialError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Family:
    """A fork, the snapshot that it is a copy of, that one's program (whose branch it is), and the live ones beside it:
    that program, and its other copies."""

    name: str
    origin: ObjectId
    branch: str
    others: tuple[str, ...]


def family(repository: Repository, name: str) -> Family:
    """IjfsError where the program `name` is no fork, or where it was not saved since."""
    origin, branch = _origin(repository, name, _head(repository, name))
    if origin is None:
        raise IjfsError(f"`{name}` is no copy of another program: there is nothing to win", hint="`ijfs tree` shows it")
    live = [info for info in list_instances(repository.path) if info.status == "running" and info.name != name]
    others = [info.name for info in live if info.snapshot and _belongs(repository, info.name, info.snapshot, origin)]
    return Family(name, origin, branch, tuple(others))


def settle(repository: Repository, found: Family, on_event: OnEvent | None = None) -> str | None:
    """Save the winner, move the branch to it, save and end the others; the name that what the branch had before has now
    (None: the winner goes on from it). PartialError where one of the others runs on."""
    repo = repository.path
    if is_running(repo, found.name):
        with connect(repo, found.name, on_event=on_event) as keeper:
            keeper.save(f"`{found.name}` won")
    failed = dict(_ended(repository, found, on_event))
    head = _head(repository, found.name)
    before = repository.refs.branches().get(found.branch)
    kept = None
    if before is not None and before not in _line(repository, head):
        kept = repository.refs.set_aside(found.branch, before)
    repository.refs.set_branch(found.branch, head, expect=before, why=f"{found.name} won")
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise PartialError(
            f"`{found.branch}` is the branch of `{found.name}` now, but not all others ended ({reasons})"
        )
    return kept


def _ended(repository: Repository, found: Family, on_event: OnEvent | None) -> Iterator[tuple[str, IjfsError]]:
    """Save and end the others; those that run on, and why."""
    for other in found.others:
        try:
            with connect(repository.path, other, on_event=on_event) as keeper:
                keeper.save(f"when `{found.name}` won", stop=True)
        except InstanceExitedError:
            continue
        except IjfsError as error:
            yield other, error


def _head(repository: Repository, name: str) -> ObjectId:
    """The newest snapshot of a program."""
    live = next((info for info in list_instances(repository.path) if info.name == name), None)
    return repository.resolve(live.snapshot if live is not None and live.snapshot else name)


def _origin(repository: Repository, name: str, head: ObjectId) -> tuple[ObjectId | None, str]:
    """The newest snapshot on the way back that is another program's, and its branch."""
    for ident in _line(repository, head):
        program = _program(repository, ident)
        if program is not None and program != name:
            return ident, program
    return None, ""


def _belongs(repository: Repository, name: str, snapshot: str, origin: ObjectId) -> bool:
    """Whether a live program is a copy of that snapshot, or went on from it."""
    line = list(_line(repository, bytes.fromhex(snapshot)))
    if origin not in line:
        return False
    since = {_program(repository, ident) for ident in line[: line.index(origin)]}
    return since <= {name}


def _program(repository: Repository, ident: ObjectId) -> str | None:
    try:
        return live_meta(repository.snapshot(ident)).spec.name
    except (NotLiveError, UnknownNameError):
        return None


def _line(repository: Repository, head: ObjectId) -> Iterator[ObjectId]:
    """A snapshot and its first parents, newest first."""
    at: ObjectId | None = head
    while at is not None:
        yield at
        try:
            parents = repository.parents(at)
        except UnknownNameError:
            return
        at = parents[0] if parents else None
