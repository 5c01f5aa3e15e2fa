"""Files of snapshots for whatever reads by fsspec (pandas, pyarrow, dask): `ijfs://SNAPSHOT/path`, read only.

fsspec finds the class by its entry point; needs the extra `fsspec`. What comes after the snapshot is a path as the
program has it: `ijfs://main/home/me/out.csv`. Only what the program wrote is in a snapshot.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ijfs.jupyter.repository import choose_repository
from ijfs.sdk.snapshots import FILES
from ijfs_engine import TYPE_BITS
from ijfs_engine.errors import UnknownNameError

if TYPE_CHECKING:
    from ijfs_engine import Entry, Reader, Repository, StoredFile

KINDS = {"f": "file", "d": "directory", "l": "link"}


class SnapshotFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """All snapshots of one repository: `repo`, or the one that the command line takes. The first part of a path names
    the snapshot as the command line would: a branch, a tag, an id."""

    protocol = "ijfs"
    root_marker = ""

    def __init__(self, repo: str | os.PathLike[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.repo: Path = choose_repository(os.fspath(repo) if repo is not None else None)

    @cached_property
    def _engine(self) -> Repository:
        from ijfs_engine import Repository

        return Repository.open(self.repo)

    @cached_property
    def _reader(self) -> Reader:
        return self._engine.reader()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What a directory holds; of the top, all branches and tags. FileNotFoundError."""
        where = self._strip_protocol(path).strip("/")
        found = self._names() if not where else self._listed(where)
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size, kind and time of one file. FileNotFoundError."""
        where = self._strip_protocol(path).strip("/")
        if not where:
            return {"name": "", "size": 0, "type": "directory"}
        return _info(where, self._entry(where))

    def modified(self, path: str) -> datetime:
        """When the program last changed a file."""
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=UTC)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Bytes of a file; negative places count from its end."""
        stored = self.stored(path)
        first, last, _step = slice(start, end).indices(stored.size)
        return stored.read(first, max(0, last - first))

    def stored(self, path: str) -> StoredFile:
        """A regular file. FileNotFoundError, IsADirectoryError."""
        where = self._strip_protocol(path).strip("/")
        entry = self._entry(where)
        if entry.kind != "f":
            raise IsADirectoryError(21, "not a regular file", where)
        return self._reader.open(entry)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        if mode != "rb":
            raise PermissionError(30, "snapshots are read only", path)
        return _File(self, path, self.stored(path), **options)

    def _names(self) -> list[dict[str, Any]]:
        refs = self._engine.refs
        names = sorted({*refs.branches(), *refs.tags()})
        return [{"name": name, "size": 0, "type": "directory"} for name in names]

    def _listed(self, where: str) -> list[dict[str, Any]]:
        entry = self._entry(where)
        if entry.kind != "d":
            return [_info(where, entry)]
        if entry.content is None:
            return []
        return [
            _info(f"{where}/{os.fsdecode(child.name)}", child) for child in self._reader.tree(entry.content).entries
        ]

    def _entry(self, where: str) -> Entry:
        """What is at a path. FileNotFoundError."""
        spec, _, below = where.partition("/")
        try:
            root = self._engine.snapshot(self._engine.resolve(spec)).root
            return self._reader.lookup(root, f"{FILES}/{below}")
        except UnknownNameError as error:
            raise FileNotFoundError(2, str(error), where) from None


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is read range by range; fsspec keeps what it reads ahead."""

    def __init__(self, fs: SnapshotFileSystem, path: str, stored: StoredFile, **options: Any) -> None:
        self._stored = stored
        super().__init__(fs, path, mode="rb", size=stored.size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._stored.read(start, end - start)


def _info(where: str, entry: Entry) -> dict[str, Any]:
    info = {
        "name": where,
        "size": entry.size if entry.kind == "f" else 0,
        "type": KINDS.get(entry.kind, "other"),
        "mode": TYPE_BITS[entry.kind] | stat.S_IMODE(entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime_ns / 1e9,
    }
    return {**info, "destination": os.fsdecode(entry.target)} if entry.kind == "l" else info
