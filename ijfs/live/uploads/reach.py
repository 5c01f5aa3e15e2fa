"""What goes to a remote with branches, tags and snapshots: the bases that they stand on, too, or nothing could be
restored there. For `ijfs push`, `migrate` and the pusher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ijfs.live.bases.needs import base_of
from ijfs.live.uploads.followed import ANY, remote_of
from ijfs_engine import Progress, Repository


def to_push(repository: Repository, names: Sequence[str]) -> tuple[dict[str, bytes], list[bytes]]:
    """Refs to push, with the tags of the bases that go along, and snapshots that no ref here stands for."""
    refs, alone = _named(repository, names)
    bases = _bases(repository, [*refs.values(), *alone])
    refs |= {f"tag/{tag}": ident for tag, ident in repository.refs.tags().items() if ident in bases}
    return refs, [*alone, *bases]


def _named(repository: Repository, names: Sequence[str]) -> tuple[dict[str, bytes], list[bytes]]:
    """Refs to push, and snapshots that were named by something else."""
    branches, tags = repository.refs.branches(), repository.refs.tags()
    if not names:
        named = {f"branch/{name}": ident for name, ident in branches.items()}
        return {**named, **{f"tag/{name}": ident for name, ident in tags.items()}}, []
    refs: dict[str, bytes] = {}
    alone: list[bytes] = []
    for name in names:
        if name in branches:
            refs[f"branch/{name}"] = branches[name]
        elif name in tags:
            refs[f"tag/{name}"] = tags[name]
        else:
            alone.append(repository.resolve(name))
    return refs, alone


def _bases(repository: Repository, heads: Sequence[bytes]) -> list[bytes]:
    """The bases that snapshots and their ancestors stand on: they go along, or nothing could be restored there."""
    found: dict[bytes, None] = {}
    seen: set[bytes] = set()
    stack = list(heads)
    while stack:
        ident = stack.pop()
        if ident not in seen and repository.is_here(ident):
            seen.add(ident)
            base = base_of(repository.snapshot(ident))
            if base is not None and repository.is_here(bytes.fromhex(base)):
                found[bytes.fromhex(base)] = None
            stack += repository.parents(ident)
    return list(found)


def send_now(repo: Path, branch: str, storage: str, progress: Progress | None = None) -> str:
    """Have a branch at its remote, or at the only one; which that is. RemoteError, UnknownNameError."""
    with Repository.open(repo) as repository:
        remote = remote_of(repository, storage or ANY)
        refs, also = to_push(repository, [branch])
        repository.remotes.push(remote, refs, also=also, progress=progress)
        return remote
