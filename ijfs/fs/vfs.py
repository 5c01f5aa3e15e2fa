"""A repository as a tree of nodes: what "the snapshots as a filesystem" means, said once and without FUSE.

    snapshots/<id>/meta.json           the record: id, parents, time, message, meta
    snapshots/<id>/images/ files/ …    the snapshot's tree, as it was saved (ijfs.fs.stored)
    branches/<name> tags/<name>        links to ../snapshots/<id>
    live/<name>                        a link to the snapshot the instance last stood on
    remotes/<name>/branches/ tags/     the same of remotes, as they were last fetched; bytes come when they are read

`ijfs.fs.daemon` mounts `repository_root`. Nothing is read before it is looked at: the list of snapshots when it is
listed, a directory's tree when something in it is named or listed, a file's chunks when they are read.

What is below snapshots/<id> never changes, so the kernel may keep it. What is above is asked again: a new snapshot and
a moved branch are seen at once, a removed one is gone (ENOENT) after a second.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from ijfs.fs.nodes import CHANGING_S, Attributes, DirectoryNode, Node, Symlink, no_entry
from ijfs.fs.stored import NodeKey, SnapshotDirectory, World, inode_of, key_of
from ijfs_engine import ObjectId, Reader, Repository
from ijfs_engine.errors import UnknownNameError

ROOT_INODE = 1

# As short as `Repository.resolve` takes them.
SHORTEST_PREFIX = 4
_WHOLE_ID = 64
_HEX_DIGITS = frozenset(b"0123456789abcdef")


def repository_root(repository: Repository, reader: Reader) -> DirectoryNode:
    """The root of the mount of a repository."""
    world = World(repository, reader)
    refs = repository.refs
    children: dict[bytes, Node] = {
        b"snapshots": SnapshotsDirectory(world),
        b"branches": LinksDirectory(world, b"branches", refs.branches),
        b"tags": LinksDirectory(world, b"tags", refs.tags),
        b"live": LinksDirectory(world, b"live", lambda: live_snapshots(repository.path)),
    }
    if repository.remotes.all():
        children[b"remotes"] = RemotesDirectory(world)
    return RootDirectory(world, children)


class _LiveRecord(msgspec.Struct):
    """What concerns us of an instance's record (docs/architecture.md, the live layer's interface)."""

    snapshot: str | None = None


def live_snapshots(repository: Path) -> dict[str, ObjectId]:
    """The snapshot each live instance last stood on, by the instance's name; one without is left out."""
    found = {}
    for record in (repository / "live").glob("*/instance.json"):
        try:
            snapshot = msgspec.json.decode(record.read_bytes(), type=_LiveRecord).snapshot
            if snapshot:
                found[record.parent.name] = bytes.fromhex(snapshot)
        except (OSError, msgspec.MsgspecError, ValueError):
            continue  # being started or taken away, or not ours: it has no link then
    return found


class RootDirectory(DirectoryNode):
    """The mount's root."""

    ino = ROOT_INODE

    def __init__(self, world: World, children: Mapping[bytes, Node]) -> None:
        self._world = world
        self._children = children

    def attributes(self) -> Attributes:
        world = self._world
        return Attributes(
            ino=self.ino, mode=stat.S_IFDIR | 0o555, uid=world.uid, gid=world.gid, mtime_ns=world.mounted_ns
        )

    def lookup(self, name: bytes) -> Node:
        try:
            return self._children[name]
        except KeyError:
            raise no_entry(name) from None

    def names(self) -> Sequence[bytes]:
        return list(self._children)


class SnapshotsDirectory(DirectoryNode):
    """snapshots/: one directory per snapshot, newest first. A prefix of an id names a link, which is not listed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._key = key_of(b"snapshots")
        self.ino = inode_of(self._key)

    def attributes(self) -> Attributes:
        return self._world.made_up(self._key, stat.S_IFDIR | 0o555)

    def lookup(self, name: bytes) -> Node:
        if not SHORTEST_PREFIX <= len(name) <= _WHOLE_ID or not _HEX_DIGITS.issuperset(name):
            raise no_entry(name)
        if len(name) < _WHOLE_ID:
            return Link(self._world, key_of(b"prefix", name), lambda: self._whole(name))
        try:
            snapshot = self._world.repository.snapshot(bytes.fromhex(name.decode()))
        except UnknownNameError:
            raise no_entry(name) from None
        return SnapshotDirectory(self._world, snapshot)

    def names(self) -> Sequence[bytes]:
        return [snapshot.id.hex().encode() for snapshot in self._world.repository.snapshots()]

    def _whole(self, prefix: bytes) -> bytes:
        # Not by Repository.resolve: a branch may be called like a prefix, and would win there.
        matches = [name for name in self.names() if name.startswith(prefix)]
        if len(matches) != 1:
            raise no_entry(prefix)
        return matches[0]


class LinksDirectory(DirectoryNode):
    """branches/, tags/ and live/: names that point at snapshots. The engine lets no name have a slash in it."""

    def __init__(
        self, world: World, name: bytes, targets: Callable[[], Mapping[str, ObjectId]], up: bytes = b"../"
    ) -> None:
        """`up` leads to the root from it."""
        self._world = world
        self._up = up
        self._name = name
        self._targets = targets
        self._key = key_of(b"links", name)
        self.ino = inode_of(self._key)

    def attributes(self) -> Attributes:
        return self._world.made_up(self._key, stat.S_IFDIR | 0o555)

    def lookup(self, name: bytes) -> Node:
        return Link(self._world, key_of(b"link", self._name, name), lambda: self._target_of(name))

    def names(self) -> Sequence[bytes]:
        return sorted(os.fsencode(name) for name in self._targets())

    def _target_of(self, name: bytes) -> bytes:
        target = self._targets().get(os.fsdecode(name))
        if target is None:
            raise no_entry(name)
        return self._up + b"snapshots/" + target.hex().encode()


class RemotesDirectory(DirectoryNode):
    """remotes/: one directory for each remote, with what was there at the last look."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._key = key_of(b"remotes")
        self.ino = inode_of(self._key)

    def attributes(self) -> Attributes:
        return self._world.made_up(self._key, stat.S_IFDIR | 0o555)

    def lookup(self, name: bytes) -> Node:
        if name not in self.names():
            raise no_entry(name)
        return RemoteDirectory(self._world, name)

    def names(self) -> Sequence[bytes]:
        return sorted(os.fsencode(one.name) for one in self._world.repository.remotes.all())


class RemoteDirectory(DirectoryNode):
    """remotes/<name>/: branches/ and tags/."""

    def __init__(self, world: World, name: bytes) -> None:
        self._world = world
        self._name = name
        self._key = key_of(b"remote", name)
        self.ino = inode_of(self._key)

    def attributes(self) -> Attributes:
        return self._world.made_up(self._key, stat.S_IFDIR | 0o555)

    def lookup(self, name: bytes) -> Node:
        kinds = {b"branches": "branch", b"tags": "tag"}
        if name not in kinds:
            raise no_entry(name)
        return LinksDirectory(
            self._world, b"remotes/" + self._name + b"/" + name, lambda: self._named(kinds[name]), b"../../../"
        )

    def names(self) -> Sequence[bytes]:
        return [b"branches", b"tags"]

    def _named(self, kind: str) -> Mapping[str, ObjectId]:
        return self._world.repository.remotes.known(os.fsdecode(self._name)).named(kind)


class Link(Symlink):
    """A link whose target is looked up each time it is read; without one it does not exist."""

    def __init__(self, world: World, key: NodeKey, target: Callable[[], bytes]) -> None:
        self.ino = inode_of(key)
        self._world = world
        self._key = key
        self._find_target = target

    def attributes(self) -> Attributes:
        return self._world.made_up(
            self._key,
            stat.S_IFLNK | 0o777,
            size=len(self._find_target()),
            attr_timeout_s=CHANGING_S,
            entry_timeout_s=CHANGING_S,
        )

    def target(self) -> bytes:
        return self._find_target()
