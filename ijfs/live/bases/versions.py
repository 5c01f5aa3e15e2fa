"""The bases of a repository by name: which there are, their newest versions, and taking one away."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from ijfs.live.bases import cache, needs
from ijfs.live.bases.records import TAGS, BaseMeta, base_meta, check_name, head_tag
from ijfs_engine import Repository, Snapshot
from ijfs_engine.errors import IjfsError, UnknownNameError


class BaseInfo(NamedTuple):
    """One base: its newest version, how many are kept, whether that is laid out as a directory, who needs any."""

    name: str
    snapshot: Snapshot
    meta: BaseMeta
    versions: int
    laid_out: bool
    needed_by: list[str]


class BaseNeededError(IjfsError):
    """A base that snapshots or instances stand on was to be removed."""

    default_hint = "remove those first (`ijfs rm`, `ijfs stop --rm`)"


def newest(repository: Repository, name: str) -> Snapshot:
    """The newest version of a base. UnknownNameError."""
    ident = repository.refs.tags().get(head_tag(name))
    if ident is None:
        raise UnknownNameError(
            f"there is no base `{name}`", hint="`ijfs base list` lists them, `ijfs base import --name N` makes one"
        )
    return repository.snapshot(ident)


def bases(repository: Repository) -> list[BaseInfo]:
    """Every base, by name."""
    tags = repository.refs.tags()
    needed = needs.who_needs(repository)
    found = []
    for tag, ident in sorted(tags.items()):
        name = tag.removeprefix(TAGS)
        if not tag.startswith(TAGS) or "@" in name:
            continue
        snapshot = repository.snapshot(ident)
        versions = _versions(tags, name)
        who = [one for version in {*versions.values(), ident} for one in needed.get(version.hex(), [])]
        meta = base_meta(snapshot) or BaseMeta(name=name, origin="?")
        laid_out = cache.directory_of(repository.path, ident.hex()).root.is_dir()
        found.append(BaseInfo(name, snapshot, meta, max(1, len(versions)), laid_out, sorted(who)))
    return found


def remove(repository: Repository, name: str) -> list[str]:
    """Remove a base with all its versions; gc then frees the bytes. Their ids. UnknownNameError, BaseNeededError."""
    check_name(name)
    head = newest(repository, name)
    tags = repository.refs.tags()
    versions = {**_versions(tags, name), head_tag(name): head.id}
    needed = needs.who_needs(repository)
    who = sorted({one for ident in versions.values() for one in needed.get(ident.hex(), [])})
    if who:
        more = f" and {len(who) - 3} more" if len(who) > 3 else ""
        raise BaseNeededError(f"the base `{name}` is needed by {', '.join(who[:3])}{more}")
    for tag in versions:
        repository.refs.delete_tag(tag, why="base rm")
    for ident in set(versions.values()):
        with contextlib.suppress(IjfsError):  # somebody's own tag keeps it
            repository.remove(ident)
    sweep(repository)
    return sorted({ident.hex() for ident in versions.values()})


def sweep(repository: Repository) -> list[str]:
    """Let go of the versions that are neither the newest of their base nor needed, and remove the directories of all
    that is no base (any more). The ids of what went from `bases/`."""
    from ijfs.live.bases.importing import drop_unneeded

    for tag in list(repository.refs.tags()):
        if tag.startswith(TAGS) and "@" not in tag.removeprefix(TAGS):
            drop_unneeded(repository, tag.removeprefix(TAGS))

    def kept() -> set[str]:
        tagged = {ident.hex() for tag, ident in repository.refs.tags().items() if tag.startswith(TAGS)}
        return (tagged & {*needs.who_needs(repository), *_heads(repository)}) | needs.live_bases(repository.path)

    return cache.sweep(repository.path, kept)


def _heads(repository: Repository) -> set[str]:
    tags = repository.refs.tags()
    return {ident.hex() for tag, ident in tags.items() if tag.startswith(TAGS) and "@" not in tag.removeprefix(TAGS)}


def _versions(tags: dict[str, bytes], name: str) -> dict[str, bytes]:
    return {tag: ident for tag, ident in tags.items() if tag.startswith(f"{head_tag(name)}@")}
