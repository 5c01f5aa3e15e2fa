"""What the keys of `ijfs top` do, each as the verb of that name does it; what was done comes back as a sentence."""

from __future__ import annotations

from pathlib import Path

from ijfs.cli import text
from ijfs.history.snapshots import program_of
from ijfs.live.client import api as client
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError


def save(repository: Path, name: str, message: str) -> str:
    """Save a live program."""
    with client.connect(repository, name) as keeper:
        saved = keeper.save(message)
    return f"{name} saved as {saved.snapshot[: text.SHORT_ID]}"


def undo(repository: Path, name: str) -> str:
    """Back to the snapshot that the program stands on; what it is now is saved first."""
    standing = client.describe(repository, name).snapshot
    if standing is None:
        raise IjfsError(f"`{name}` was never saved: there is nothing to go back to")
    return go_back(repository, standing, name)


def go_back(repository: Path, snapshot: str, name: str) -> str:
    """Bring a snapshot back in the place of a live program of that name, which is saved first, or as a new one."""
    info = client.restore(repository, snapshot, name, replace=True, save_first=True)
    left = f"; what it was is {info.left[: text.SHORT_ID]}" if info.left else ""
    return f"{name} runs from {snapshot[: text.SHORT_ID]}{left}"


def fork(repository: Path, source: str, wish: str) -> str:
    """A copy beside it of a live program, or of a snapshot."""
    (info,) = client.fork(repository, source, wish=wish)
    return f"{info.name} runs"


def stop(repository: Path, name: str) -> str:
    """End a live program; its files stay."""
    with client.connect(repository, name) as keeper:
        keeper.stop()
    return f"{name} has ended; its files are still there"


def tag(repository: Path, snapshot: str, name: str) -> str:
    """Give a snapshot a name that stays."""
    with Repository.open(repository) as store:
        store.refs.set_tag(name, store.resolve(snapshot), why="top")
    return f"{snapshot[: text.SHORT_ID]} has the tag {name}"


def program_in(repository: Path, snapshot: str) -> str:
    """The name of the program that a snapshot was saved of."""
    with Repository.open(repository) as store:
        return program_of(store.snapshot(store.resolve(snapshot))) or snapshot[: text.SHORT_ID]
