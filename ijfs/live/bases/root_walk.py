"""A root file system on its way into a snapshot: what is in it, what of it is unchanged, and what is left out.

Called by importing.py. Left out are kernel interfaces and scratch directories (a sandbox has its own), other mounts
(a sandbox is shown those of them that hold files), the repository, and other containers' files. What vanishes while it
is being walked was not there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from ijfs.live.bases.records import WALKED_VERSION, FileKey, WalkedDirectory, WalkedRoot, keys_of
from ijfs.live.sandbox.volumes import OWN, mount_points
from ijfs_engine import Entry, EntryKind, Reader

# Files' times are believed only when they are older than this at the moment they are read (checkpoint/workspace.py).
RACY_NS = 20_000_000

# Other containers' files, and memory on disk: none of it is a program's, and it may be larger than all the rest.
FOREIGN = ("var/lib/docker", "var/lib/containers", "var/lib/containerd", "var/lib/kubelet", "swapfile", "swap.img")

FILES = "files"
"""Where a base's files are in its snapshot, as for every imported directory."""

_KINDS: dict[int, EntryKind] = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
}
_packer = msgspec.msgpack.Encoder()


def left_out(root: Path, repo: Path, more: Iterable[str] = ()) -> list[bytes]:
    """Paths below `root` whose contents a base does not have, sorted."""
    found = {name.lstrip("/") for name in (*OWN, *FOREIGN, *more)}
    for path in (*mount_points(), repo.resolve()):
        if path != root and path.is_relative_to(root):
            found.add(str(path.relative_to(root)))
    return sorted(os.fsencode(name) for name in found if name)


class Item(NamedTuple):
    """One name of a base: its place in the snapshot's tree, its entry, and the file to read its bytes from (None:
    there are none, or they are as in the version before)."""

    at: str
    entry: Entry
    source: Path | None


@dataclass(slots=True)
class Before:
    """The version that a walk is compared with: its table and its snapshot's tree."""

    walked: WalkedRoot
    reader: Reader
    root: bytes
    _directories: dict[bytes, WalkedDirectory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._directories = {directory.path: directory for directory in self.walked.directories}

    def files(self, path: bytes, tree: bytes | None) -> tuple[Mapping[bytes, FileKey], Mapping[bytes, Entry]]:
        """The keys and entries of one directory, as they were."""
        directory = self._directories.get(path)
        if directory is None or tree is None:
            return {}, {}
        return keys_of(directory), {entry.name: entry for entry in self.reader.tree(tree).entries}


@dataclass(slots=True)
class Walk:
    """One walk: `items` is consumed first, `table` is whole afterwards."""

    root: Path
    skipped: Collection[bytes]
    before: Before | None = None
    unreadable: frozenset[str] = frozenset()
    files: int = 0
    bytes_to_read: int = 0
    _directories: list[WalkedDirectory] = field(default_factory=list)
    _links: dict[tuple[int, int], int] = field(default_factory=dict)
    _now: int = 0

    def items(self, now_ns: int) -> Iterator[Item]:
        """Everything below the root, parents first, itself included. `now_ns`: the wall clock as the walk begins."""
        self._now = now_ns
        top = os.lstat(self.root)
        yield Item(FILES, msgspec.structs.replace(self._entry(os.fsencode(self.root), b"", top, "d"), mtime_ns=0), None)
        todo: list[tuple[bytes, int, bytes | None]] = [(b"", top.st_ctime_ns, self._top_tree())]
        while todo:
            path, ctime_ns, tree = todo.pop()
            known, entries = self.before.files(path, tree) if self.before else ({}, {})
            keys: dict[bytes, FileKey] = {}
            for name, full, status in self._list(path):
                below = path + b"/" + name if path else name
                kind = _KINDS.get(stat.S_IFMT(status.st_mode))
                if kind is None:  # a socket: whoever listened at it is not in the base
                    continue
                if kind == "d":
                    yield Item(_at(below), self._directory(full, below, name, status), None)
                    if below not in self.skipped:
                        before = entries.get(name)
                        todo.append((below, status.st_ctime_ns, before.content if before is not None else None))
                elif below not in self.skipped and os.fsdecode(full) not in self.unreadable:
                    keys[name] = self._key(status)
                    yield self._file(below, full, name, status, kind, entries.get(name), known.get(name))
            self._directories.append(WalkedDirectory(path, self._time(ctime_ns), msgspec.Raw(_packer.encode(keys))))

    def table(self) -> WalkedRoot:
        """What was walked, for the next time."""
        return WalkedRoot(WALKED_VERSION, str(self.root), sorted(self.skipped), sorted(self._directories, key=_path_of))

    def _top_tree(self) -> bytes | None:
        return self.before.reader.lookup(self.before.root, FILES).content if self.before else None

    def _list(self, path: bytes) -> list[tuple[bytes, bytes, os.stat_result]]:
        directory = os.path.join(os.fsencode(self.root), path)
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as listing:
            for item in listing:
                with contextlib.suppress(FileNotFoundError):
                    found.append((item.name, item.path, item.stat(follow_symlinks=False)))
        return sorted(found, key=lambda one: one[0])

    def _directory(self, full: bytes, below: bytes, name: bytes, status: os.stat_result) -> Entry:
        """What is left out has no time: nothing of it is here that could change."""
        entry = self._entry(full, name, status, "d")
        return msgspec.structs.replace(entry, mtime_ns=0) if below in self.skipped else entry

    def _file(
        self,
        below: bytes,
        full: bytes,
        name: bytes,
        status: os.stat_result,
        kind: EntryKind,
        entry: Entry | None,
        known: FileKey | None,
    ) -> Item:
        self.files += 1
        if entry is not None and known == _key_of(status) and entry.kind == kind:
            return Item(_at(below), msgspec.structs.replace(entry, link=self._link(status)), None)
        made = self._entry(full, name, status, kind)
        if kind != "f":
            return Item(_at(below), made, None)
        self.bytes_to_read += status.st_size
        return Item(_at(below), made, Path(os.fsdecode(full)))

    def _entry(self, path: bytes, name: bytes, status: os.stat_result, kind: EntryKind) -> Entry:
        target = b""
        with contextlib.suppress(FileNotFoundError, OSError):
            target = os.readlink(path) if kind == "l" else b""
        return Entry(
            name=name,
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            size=len(target),
            target=target,
            rdev=status.st_rdev if kind in "cb" else 0,
            xattrs=_xattrs(path),
            link=self._link(status) if kind != "d" else 0,
        )

    def _link(self, status: os.stat_result) -> int:
        if status.st_nlink < 2:
            return 0
        return self._links.setdefault((status.st_dev, status.st_ino), len(self._links) + 1)

    def _key(self, status: os.stat_result) -> FileKey:
        key = _key_of(status)
        return msgspec.structs.replace(key, ctime_ns=self._time(key.ctime_ns))

    def _time(self, ctime_ns: int) -> int:
        """-1, which no file has, for a change so young that the next one might not show."""
        return ctime_ns if ctime_ns < self._now - RACY_NS else -1


def _path_of(directory: WalkedDirectory) -> bytes:
    return directory.path


def _at(below: bytes) -> str:
    return f"{FILES}/{os.fsdecode(below)}"


def _key_of(status: os.stat_result) -> FileKey:
    return FileKey(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The attributes of a file but those of an overlay below, which mean nothing elsewhere."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
        found = [(os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names]
    except OSError:  # none here, or gone meanwhile
        return ()
    return tuple(sorted(pair for pair in found if not pair[0].startswith(b"trusted.overlay.")))
