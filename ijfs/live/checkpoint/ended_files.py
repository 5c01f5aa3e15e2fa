"""The files of a program that has ended: which of them are in no snapshot, and into one with them.

An ended instance's directory holds what its program wrote until somebody forgets it. Called by client/claim.py, before
another program gets the name, and by client/ended.py, for `ijfs save` of an ended program.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ijfs.live.bases.cache import directory_of
from ijfs.live.checkpoint.files_before import SnapshotFiles
from ijfs.live.checkpoint.layers import WritableLayer, has_bytes, layers_of, upper_directories, walk
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SaveContents, SaveOutcome, SnapshotStore
from ijfs.live.checkpoint.workspace import Capture, LayerWalker
from ijfs.live.model.paths import RUN_INSIDE, InstancePaths
from ijfs.live.model.records import InstanceRecord
from ijfs.live.sandbox import disk
from ijfs_engine import Entry, FoundOnDisk
from ijfs_engine.errors import IjfsError

BY_PRODUCTS = frozenset({"__pycache__", ".ipynb_checkpoints", ".cache", ".ipython"})
"""Directories that programs fill by the way, and fill again: nobody misses them."""

OF_THE_SANDBOX = (f"{RUN_INSIDE}/", "/etc/resolv.conf")
"""What the sandbox wrote, and not its program."""


class _Written(NamedTuple):
    """A file in a writable layer: its place in a snapshot, its path as the program had it, what it is here."""

    at: str
    inside: str
    found: FoundOnDisk


def unsaved_files(paths: InstancePaths, record: InstanceRecord) -> Iterator[str]:
    """Files, as paths inside, that an ended program wrote or changed and that the snapshot it stood on does not have.
    Not by-products, not what is as in the files that it stood on, not what it deleted."""
    saved: _Saved | None = None
    try:
        for file in _written(paths, record):
            if _is_as_below(file, paths, record):
                continue
            saved = saved or _Saved(paths.root.parent.parent, record.snapshot)
            if not saved.has(file):
                yield file.inside
    finally:
        if saved is not None:
            saved.close()


def save_files(
    paths: InstancePaths, record: InstanceRecord, meta: LiveMeta, *, message: str, branch: str
) -> SaveOutcome:
    """A snapshot of an ended program's files, the child of the one that it stood on. StorageError and others of the
    engine; nothing is stored then."""
    staging = paths.root / "stage-ended"
    store = SnapshotStore(paths.root.parent.parent)
    capture = Capture()
    try:
        with ended_layers(paths, record) as layers:
            capture = LayerWalker(layers, {}, staging).capture(None, frozenset())
            contents = SaveContents(
                images={},
                workspace=capture,
                notebook=None,
                meta=meta,
                message=message,
                branch=branch,
            )
            parent = store.repository.nearest([bytes.fromhex(record.snapshot)]) if record.snapshot else None
            return store.store(contents, parent, None)
    finally:
        capture.discard()
        store.close()


@contextlib.contextmanager
def ended_layers(paths: InstancePaths, record: InstanceRecord) -> Iterator[list[WritableLayer]]:
    """The writable layers that an ended program has left; its /dev and /dev/shm are gone with it. A disk of its own is
    mounted meanwhile."""
    sandbox = paths.sandbox(record.generation)
    with disk.opened(sandbox) as place:
        volumes = [
            (volume, place / upper.relative_to(sandbox.layers))
            for volume, upper in upper_directories(sandbox, record.volumes)
        ]
        layers = layers_of(place / sandbox.upper.relative_to(sandbox.layers), volumes, None)
        yield [layer for layer in layers if layer.outside.is_dir()]


def _written(paths: InstancePaths, record: InstanceRecord) -> Iterator[_Written]:
    with ended_layers(paths, record) as layers:
        for layer in layers:
            for at, found in walk(layer):
                inside = layer.inside + at[len(layer.at) :]
                if _counts(inside, found.status):
                    yield _Written(at, inside, found)


def _counts(inside: str, status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        return False
    return not inside.startswith(OF_THE_SANDBOX) and BY_PRODUCTS.isdisjoint(inside.split("/"))


def _is_as_below(file: _Written, paths: InstancePaths, record: InstanceRecord) -> bool:
    """Whether it is a copy of what the program stood on: opened for writing, or brought along, and never written."""
    lowers = [Path("/")]
    if record.base is not None:
        lowers.append(directory_of(paths.root.parent.parent, record.base.snapshot).root)
    return any(_is_same(file.found, f"{lower}/{file.inside}") for lower in lowers)


def _is_same(found: FoundOnDisk, path: str) -> bool:
    try:
        if _key(found.status) != _key(os.lstat(path)):
            return False
        if not stat.S_ISREG(found.status.st_mode):
            return True
        with open(path, "rb") as other:
            return has_bytes(found, lambda offset, length: os.pread(other.fileno(), length, offset))
    except OSError:
        return False


def _key(status: os.stat_result) -> tuple[int, int, int]:
    return stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns


class _Saved:
    """The files of the snapshot that a program stood on, where there is one that can be read."""

    def __init__(self, repo: Path, snapshot: str | None) -> None:
        self._store = SnapshotStore(repo)
        self._files: SnapshotFiles | None = None
        try:
            if snapshot is not None:
                root = self._store.repository.snapshot(bytes.fromhex(snapshot)).root
                self._files = SnapshotFiles(self._store.reader, root)
        except IjfsError:  # removed: then nothing of it is saved
            self._files = None

    def has(self, file: _Written) -> bool:
        if self._files is None:
            return False
        try:
            entry = self._files.at(file.at)
            return _is_entry(entry, file) and (entry.kind != "f" or self._has_content(entry, file))
        except (IjfsError, OSError):
            return False

    def _has_content(self, entry: Entry, file: _Written) -> bool:
        return has_bytes(file.found, self._store.reader.open(entry).read)

    def close(self) -> None:
        self._store.close()


def _is_entry(entry: Entry, file: _Written) -> bool:
    status = file.found.status
    if stat.S_ISLNK(status.st_mode):
        return entry.kind == "l" and entry.target == file.found.entry().target
    return entry.kind == "f" and (entry.size, entry.mtime_ns) == (status.st_size, status.st_mtime_ns)
