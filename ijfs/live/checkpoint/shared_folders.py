"""Folders of the host that a saved program worked in, when it comes back: which it shares again, which are its own.

A program that comes back under the name that it was saved under goes on in them. Any other is a copy: it gets what was
in them then, as files of its own, so that no two of them write into one folder and none sees the others. Called by
restore.py; what puts a folder back as it was, where that is asked for, is adopt/folders.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore
from ijfs.live.criu.image_format import RegularFile, parse_regular_files, parse_remapped
from ijfs.live.errors import ProgramRefusedError
from ijfs.live.model.records import Volume
from ijfs.live.sandbox.volumes import is_below
from ijfs_engine import Snapshot

OF_THE_HOST = frozenset(("shared", "bind", "readonly"))
"""Kinds of volumes that are the host's own."""

MOST_NAMES = 5
"""Files that a note names."""


class Decided(NamedTuple):
    """The volumes that a restored program gets, and what a person should know of them."""

    volumes: tuple[Volume, ...]
    notes: tuple[str, ...] = ()


def decide(meta: LiveMeta, name: str, choice: str) -> Decided:
    """What becomes of each volume of a snapshot in the program `name`; `choice` as RestoreArguments.files has it. A
    shared folder that is not here any more is the program's own from now on."""
    private = choice == "private" or (not choice and name != meta.spec.name)
    found, notes = [], []
    for volume in meta.volumes:
        gone = volume.kind == "shared" and not os.path.isdir(volume.path)
        if gone and not private:
            notes.append(f"{volume.path} is not here any more: `{name}` has it as it was, as files of its own")
        own = gone or (volume.kind == "shared" and private)
        found.append(msgspec.structs.replace(volume, kind="private") if own else volume)
    return Decided(tuple(found), tuple(notes))


def check_open_files(
    store: SnapshotStore, snapshot: Snapshot, meta: LiveMeta, volumes: Sequence[Volume]
) -> tuple[str, ...]:
    """Look at the files of the host's folders that the program had open: ProgramRefusedError where one is not there, or
    is another in a folder that no save keeps. Returns what a person should know."""
    folders = [volume for volume in volumes if volume.kind in OF_THE_HOST]
    changed = []
    for file in _open_files(store, snapshot) if folders else ():
        volume = _innermost(file.path, volumes)
        if volume is None or volume.kind not in OF_THE_HOST:
            continue
        why = _difference(file, kept=volume.kind == "shared")
        if why:
            raise ProgramRefusedError(f"the program had {file.path} open, which {why}", hint=_remedy(volume))
        if _is_newer(file, meta.frozen_at_ns):
            changed.append(file.path)
    if not changed:
        return ()
    names = ", ".join(changed[:MOST_NAMES]) + (", …" if changed[MOST_NAMES:] else "")
    return (f"changed since it was saved, and open in it: {names}",)


def _remedy(volume: Volume) -> str:
    if volume.kind == "shared":
        return "`--files restore` puts the folder back as it was, `--files private` gives the program a copy of that"
    return "put the file back as it was: no save keeps what is in a folder given by --bind"


def _open_files(store: SnapshotStore, snapshot: Snapshot) -> Iterator[RegularFile]:
    """What it has open or maps, by name. CorruptError."""
    names = ("files.img", "remap-fpath.img")
    images = {name: store.image(snapshot, name) for name in names}
    deleted = parse_remapped(names[1], images[names[1]])
    seen = set()
    for file in parse_regular_files(names[0], images[names[0]]):
        if file.id not in deleted and file.path not in seen:
            seen.add(file.path)
            yield file


def _innermost(path: str, volumes: Sequence[Volume]) -> Volume | None:
    around = [volume for volume in volumes if is_below(Path(path), [volume.path])]
    return max(around, key=lambda volume: len(volume.path), default=None)


def _difference(file: RegularFile, *, kept: bool) -> str:
    """Why CRIU could not open it again. Of a shared one the size may be another (criu/shared_files.py)."""
    try:
        status = os.stat(file.path)
    except OSError:
        return "is gone"
    if file.mode is not None and stat.S_IFMT(status.st_mode) != stat.S_IFMT(file.mode):
        return "is no longer the kind of file that it was"
    if kept:
        return ""
    if stat.S_ISREG(status.st_mode) and file.size is not None and status.st_size != file.size:
        return f"has {status.st_size:,} bytes and had {file.size:,}"
    return "" if file.mode is None or status.st_mode == file.mode else "has other permissions"


def _is_newer(file: RegularFile, than_ns: int) -> bool:
    status = os.stat(file.path)
    return bool(than_ns) and stat.S_ISREG(status.st_mode) and status.st_mtime_ns > than_ns
