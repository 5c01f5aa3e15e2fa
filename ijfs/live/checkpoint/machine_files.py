"""Files of the machine that a saved program has open or maps, beside what they are now: libraries by their build ids.

Asked by machine/fit.py before anything is tried, and by restore.py where CRIU has refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore
from ijfs.live.criu.image_format import RegularFile, parse_regular_files, parse_remapped
from ijfs.live.process import elf
from ijfs.live.sandbox.lower import inside
from ijfs.live.sandbox.rootfs import OPAQUE
from ijfs.live.sandbox.volumes import OWN, is_below
from ijfs_engine import Entry, Snapshot
from ijfs_engine.errors import UnknownNameError

REMEDY = (
    "install the package's version of the snapshot again, or bring the file back; on a base (`ijfs base import`,"
    " `--base`) a program needs no file of the machine"
)


def machine_files(store: SnapshotStore, snapshot: Snapshot) -> Iterator[RegularFile]:
    """Those of the machine's root and mounts, each once; not what comes back with the snapshot. CorruptError."""
    deleted = parse_remapped("remap-fpath.img", store.image(snapshot, "remap-fpath.img"))
    seen = set()
    for file in parse_regular_files("files.img", store.image(snapshot, "files.img")):
        own = is_below(Path(file.path), OWN[:3]) or not file.path.startswith("/") or file.id in deleted
        if not own and file.path not in seen and not _is_in(store, snapshot, file.path):
            seen.add(file.path)
            yield file


def differences(store: SnapshotStore, snapshot: Snapshot, meta: LiveMeta) -> list[str]:
    """What is not as it was, a clause each; nothing where the program stands on a base. CorruptError."""
    if meta.base is not None:
        return []
    found = ((file.path, difference(file, Path("/"))) for file in machine_files(store, snapshot))
    return [f"{path} {text}" for path, text in found if text]


def difference(file: RegularFile, root: Path) -> str:
    """How a file is not what it was when the program was saved; empty where it is."""
    here = inside(root, file.path)
    if here is None:
        return "is gone"
    status = here.stat()
    if file.mode is not None and stat.S_IFMT(status.st_mode) != stat.S_IFMT(file.mode):
        return "is no longer the kind of file that it was"
    if stat.S_ISREG(status.st_mode) and file.size is not None and status.st_size != file.size:
        return f"has {status.st_size} bytes and had {file.size}"
    if file.build_id and elf.build_id(here) != file.build_id:
        return "is another build"
    return "" if file.mode is None or status.st_mode == file.mode else "has other permissions"


def _is_in(store: SnapshotStore, snapshot: Snapshot, path: str) -> bool:
    """Whether it comes back with the snapshot's own files, or below a directory that hides the machine's."""
    parents = [str(parent) for parent in Path(path).parents[:-1]]
    hides = (_entry(store, snapshot, parent) for parent in parents)
    return _entry(store, snapshot, path) is not None or any(
        entry is not None and (OPAQUE.encode(), b"y") in entry.xattrs for entry in hides
    )


def _entry(store: SnapshotStore, snapshot: Snapshot, path: str) -> Entry | None:
    try:
        return store.reader.lookup(snapshot.root, os.fsencode(f"files{path}"))
    except UnknownNameError:
        return None
