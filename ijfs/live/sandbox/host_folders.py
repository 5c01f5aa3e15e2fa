"""Folders of the host that a program works in as they are: shared ones, whose state each save keeps, and bound ones.

Called by client/api.py, which settles a spec before anything is started, by sandbox.py, and by the provisioner. What
becomes of them at a restore is checkpoint/host_files.py's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ijfs.live.errors import CommandError
from ijfs.live.model.records import InstanceSpec, Volume, VolumeKind
from ijfs.live.model.sizes import parse_size
from ijfs.live.sandbox.volumes import is_below

LIMIT = "IJFS_SHARE_LIMIT"
"""How much a shared folder may hold, as `512M` or `4G`."""

DEFAULT_LIMIT = 1 << 30
"""The first save reads all of it into memory, and each copy of the program gets all of it."""

MOST_FILES = 100_000
"""To look at so many takes a save a second of processor."""

# What every sandbox has of its own, or is made of.
_NEVER = ("/proc", "/sys", "/dev", "/run")
_READ_ONLY = ":ro"


class Held(NamedTuple):
    """What a folder holds, counted as far as its limit."""

    bytes: int
    files: int
    too_much: bool


def settled(spec: InstanceSpec, repo: Path) -> InstanceSpec:
    """The spec with its folders as the host calls them, links resolved, each once. CommandError for what cannot be
    shared or bound, and for what is too large to be kept by each save."""
    shared = _outermost([_resolved(path, repo) for path in spec.share])
    bound = [_resolved(path.removesuffix(_READ_ONLY), repo) + _suffix(path) for path in spec.bind]
    for path in shared:
        if path in map(_folder, bound):
            raise CommandError(f"{path} is to be shared and bound: it can be only one")
        held = holds(path, without=[str(repo), *map(_folder, bound)])
        if held.too_much:
            raise CommandError(f"{path} cannot be shared: {said(held)}", hint=TOO_MUCH_HINT)
    return msgspec.structs.replace(spec, share=tuple(shared), bind=tuple(dict.fromkeys(bound)))


class Bearable(NamedTuple):
    """What of some folders a program is given, and what a person should know."""

    share: tuple[str, ...]
    bind: tuple[str, ...]
    notes: tuple[str, ...]


def bearable(paths: Sequence[str], repo: Path) -> Bearable:
    """Folders that are to be shared wherever they are: one that is too large for that is bound, one that cannot be had
    is left out."""
    share, bind, notes = [], [], []
    for path in paths:
        try:
            found = _resolved(path, repo)
        except CommandError as error:
            notes.append(f"{error}: what is written there stays the program's own")
            continue
        held = holds(found, without=[str(repo.resolve())])
        if held.too_much:
            bind.append(found)
            notes.append(f"{found} is written to, and no save keeps its state: {said(held)}")
        else:
            share.append(found)
    return Bearable(tuple(share), tuple(bind), tuple(notes))


TOO_MUCH_HINT = (
    f"share a smaller folder; or `--bind` it, and no save keeps its state; or let it be more: {LIMIT}=8G, or "
    "`ijfs config share_limit 8G`"
)


def given(spec: InstanceSpec) -> dict[str, VolumeKind]:
    """The folders of a settled spec, and what each is to be in the sandbox."""
    kinds: dict[str, VolumeKind] = dict.fromkeys(spec.share, "shared")
    for path in spec.bind:
        kinds[_folder(path)] = "readonly" if path.endswith(_READ_ONLY) else "bind"
    return kinds


def holds(path: str, *, without: Sequence[str] = ()) -> Held:
    """Count what a folder holds, as far as what may be shared."""
    most = limit()
    total = files = 0
    for status in _everything(path, frozenset(without)):
        files += 1
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        if total > most or files > MOST_FILES:
            return Held(total, files, True)
    return Held(total, files, False)


def said(held: Held) -> str:
    """Why it is too much, for a person."""
    if held.files > MOST_FILES:
        return f"it holds more than {MOST_FILES:,} files, and each save would look at all of them"
    return f"it holds more than {limit() >> 20:,} MiB, and each save would keep all of it"


def limit() -> int:
    """Bytes that a shared folder may hold. IjfsError where $IJFS_SHARE_LIMIT is no size."""
    text = os.environ.get(LIMIT, "")
    return parse_size(LIMIT, text) if text else DEFAULT_LIMIT


def left_out(volume: Volume, volumes: Sequence[Volume], repo: Path) -> frozenset[str]:
    """What a save leaves out of a shared folder, as paths from it: the repository, which must not store itself, and
    what another volume shows there."""
    inside = [repo, *(Path(other.path) for other in volumes if other is not volume)]
    return frozenset(str(path.relative_to(volume.path)) for path in inside if is_below(path.parent, [volume.path]))


def _resolved(path: str, repo: Path) -> str:
    found = os.path.realpath(path)
    if not os.path.isdir(found):
        raise CommandError(f"{path} is no folder that could be shared or bound")
    if found == "/" or is_below(Path(found), _NEVER):
        raise CommandError(f"{found} cannot be shared or bound: every program has one of its own")
    if is_below(Path(found), [repo.resolve()]):
        raise CommandError(f"{found} cannot be shared or bound: it is in the repository")
    return found


def _outermost(paths: Sequence[str]) -> list[str]:
    """Each once, without those that lie in another of them."""
    return [path for path in dict.fromkeys(paths) if not is_below(Path(path).parent, set(paths))]


def _folder(given: str) -> str:
    return given.removesuffix(_READ_ONLY)


def _suffix(given: str) -> str:
    return _READ_ONLY if given.endswith(_READ_ONLY) else ""


def _everything(path: str, without: frozenset[str]) -> Iterator[os.stat_result]:
    """What lies in a folder, on its own filesystem. What cannot be looked at is passed over: here it is counted."""
    device = os.stat(path).st_dev
    todo = [path]
    while todo:
        try:
            with os.scandir(todo.pop()) as listing:
                for item in listing:
                    status = _status(item)
                    if status is None or status.st_dev != device or item.path in without:
                        continue
                    yield status
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(item.path)
        except OSError:
            continue


def _status(item: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return item.stat(follow_symlinks=False)
    except OSError:
        return None
