"""A folder that a program shares with this machine, put back as a snapshot has it; what was there is kept before.

Called by keeper/lifecycle.py, where `--files restore` asks for it, and by client/folders.py, to say what it would do.
The steps are those of apply.py: each file is replaced as a whole, and what changes meanwhile is left and said.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ijfs.live.adopt.apply import apply
from ijfs.live.adopt.branch import Branch, BranchFile, SnapshotFiles
from ijfs.live.adopt.plan import Change, Step, holds
from ijfs.live.checkpoint.ahead import key_of
from ijfs.live.checkpoint.layers import WritableLayer
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SaveContents, SnapshotStore
from ijfs.live.checkpoint.workspace import RACY_NS, LayerWalker
from ijfs.live.model.records import Volume
from ijfs.live.sandbox import host_folders
from ijfs_engine import ObjectId, Reader, Snapshot
from ijfs_engine.errors import StorageError

# Sockets and devices are left: a socket without its server is nothing.
_LEFT = "scb"


def shared_in(meta: LiveMeta) -> list[Volume]:
    """The folders that the program of a snapshot shared, and that are here."""
    return [volume for volume in meta.volumes if volume.kind == "shared" and os.path.isdir(volume.path)]


def steps_back(reader: Reader, root: ObjectId, meta: LiveMeta, repo: Path) -> Iterator[Step]:
    """What would put these folders back as the snapshot with that root tree has them. Reads, and changes nothing.
    StorageError, CorruptError."""
    files = SnapshotFiles(reader, root)
    for volume in shared_in(meta):
        left_out = host_folders.left_out(volume, meta.volumes, repo)
        without = frozenset(os.fsencode(os.path.join(volume.path, path)) for path in left_out)
        yield from _Back(files, without, meta.frozen_at_ns).below(os.fsencode(volume.path))


def put_back(reader: Reader, root: ObjectId, meta: LiveMeta, steps: Sequence[Step]) -> list[str]:
    """Do these steps; what was left, and why. StorageError for a full disk and the like."""
    branch = Branch(meta.spec.name, meta.spec.cwd, SnapshotFiles(reader, root), origin=None, volumes=meta.volumes)
    return [f"{os.fsdecode(done.step.path)}: {done.left}" for done in apply(branch, steps) if done.left]


def keep(store: SnapshotStore, meta: LiveMeta, name: str, message: str, staging: Path) -> Snapshot:
    """A snapshot of these folders as they are now, on the branch `NAME.files`; files alone, without a program."""
    repo = store.path
    layers = [
        WritableLayer(
            Path(volume.path),
            f"files{volume.path}",
            volume.path,
            host_folders.left_out(volume, meta.volumes, repo),
            shared=True,
        )
        for volume in shared_in(meta)
    ]
    capture = LayerWalker(layers, {}, staging).capture(None, frozenset())
    try:
        of_files = LiveMeta(spec=meta.spec, volumes=meta.volumes, versions=meta.versions, ended=True)
        contents = SaveContents(
            images={}, workspace=capture, notebook=None, meta=of_files, message=message, branch=f"{name}.files"
        )
        return store.store(contents, None, None).snapshot
    finally:
        capture.discard()


class _Back:
    """The way from what the machine has to what a snapshot has, directory by directory."""

    def __init__(self, files: SnapshotFiles, without: frozenset[bytes], saved_ns: int) -> None:
        self._files = files
        self._without = without
        self._old_ns = saved_ns - RACY_NS

    def below(self, top: bytes) -> Iterator[Step]:
        todo = [top]
        while todo:
            here = todo.pop()
            wanted = {name: file for name, file in self._files.children(here).items() if file.entry.kind not in _LEFT}
            there = _listed(here)
            for name in sorted(there.keys() - wanted.keys()):
                yield from self._removed(here + b"/" + name, there[name])
            for name, file in sorted(wanted.items()):
                path = here + b"/" + name
                if path in self._without:
                    continue
                yield from self._compared(path, file, there.get(name))
                if file.entry.kind == "d":
                    todo.append(path)

    def _compared(self, path: bytes, file: BranchFile, status: os.stat_result | None) -> Iterator[Step]:
        if status is None:
            yield _step(path, "added", file, None)
        elif stat.S_ISDIR(status.st_mode) and file.entry.kind == "d":
            return
        elif not self._is_same(path, file, status):
            yield _step(path, "changed", file, status)

    def _removed(self, path: bytes, status: os.stat_result) -> Iterator[Step]:
        """Never what is left out of snapshots, nor a directory around it."""
        if stat.S_ISSOCK(status.st_mode) or any((one + b"/").startswith(path + b"/") for one in self._without):
            return
        yield _step(path, "removed", None, status)

    def _is_same(self, path: bytes, file: BranchFile, status: os.stat_result) -> bool:
        wanted = file.entry
        if (wanted.mode, wanted.uid, wanted.gid) != (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid):
            return False
        if wanted.kind == "l":
            return stat.S_ISLNK(status.st_mode) and os.readlink(path) == wanted.target
        if wanted.kind != "f" or not stat.S_ISREG(status.st_mode):
            return wanted.kind == "p" and stat.S_ISFIFO(status.st_mode)
        if (wanted.size, wanted.mtime_ns) != (status.st_size, status.st_mtime_ns):
            return False
        return status.st_ctime_ns < self._old_ns or holds(path, self._files.pieces(path, file))


def _step(path: bytes, change: Change, file: BranchFile | None, status: os.stat_result | None) -> Step:
    size = status.st_size if status is not None and not stat.S_ISDIR(status.st_mode) else None
    return Step(path, change, file, key_of(status) if status is not None else None, size)


def _listed(directory: bytes) -> dict[bytes, os.stat_result]:
    """What a directory of the machine holds; nothing where there is none."""
    try:
        with os.scandir(directory) as listing:
            return {entry.name: entry.stat(follow_symlinks=False) for entry in listing}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise StorageError(f"{os.fsdecode(directory)} cannot be read: {error.strerror}") from error
