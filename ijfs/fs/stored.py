"""One snapshot as a tree of nodes: its record, and what its tree of entries has, read when it is looked at.

`ijfs.fs.vfs` puts these under snapshots/<id>; a keeper shows `image_directory` to the CRIU that restores. Nothing here
ever changes, so the kernel may keep all of it.

- Inode numbers are derived from the snapshot's id and the path in it (for hard links from the whole entry without its
  name, `inode_part`), so they are the same at every mount, without a table: 62 bits of a hash, a collision among a
  million files has odds of 1 in 10^7.
- A directory's link count is 1, which btrfs too means as "not counted": counting would read every child's tree.
- What gc took from a snapshot that was removed answers ESTALE; damaged bytes answer EIO. Wrong bytes are never an
  answer: the engine checks each chunk against its id.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import blake2b
from operator import attrgetter

import msgspec

from ijfs.fs.nodes import CHANGING_S, Attributes, DirectoryNode, FileNode, Node, OpenFile, Special, Symlink, no_entry
from ijfs.fs.plain import plain
from ijfs_engine import LEAF_SPAN, TYPE_BITS, Entry, ObjectId, Reader, Repository, Snapshot, StoredFile, Tree, is_pages
from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError

# How far ahead of a sequential reader chunks are decoded, and in which steps it is asked for.
READ_AHEAD_BYTES = 8 << 20
READ_AHEAD_STEP = 2 << 20

# A read of this size is decoded straight into its answer, past the cache and without the interpreter's lock. To decode
# ahead of such reads too took the daemon twice the work: 0.95 s of processor time for 537 MB in place of 0.49.
BULK_BYTES = 512 << 10

# Files that are no longer are read from the cache, where those after them in a directory that is read in order come to
# in groups: each by itself took 0.4 ms.
SMALL_BYTES = 64 << 10
MOST_AHEAD = 128
# Who has read so many in another order gets all others, so many at a time, one time after so many reads: a directory is
# in the cache when an eighth of it was read. Only where it leaves most of the cache to others.
READ_BEFORE_SWEEP = 64
SWEPT_AT_ONCE = 128
SWEEP_PACE = 16
MOST_SWEPT_BYTES = 64 << 20
# Who reads in order may leave out so many entries: directories, files that are large or of no interest.
MOST_LEFT_OUT = 8

NodeKey = bytes
"""16 bytes that name a node for ever: a hash of where it is. Its first 62 bits are the inode number."""


def key_of(*parts: bytes) -> NodeKey:
    # Each part is preceded by its length, so that no two sequences of parts look the same.
    digest = blake2b(digest_size=16, person=b"ijfs-inode")
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part)
    return digest.digest()


def inode_of(key: NodeKey) -> int:
    """The inode number: 2 to 2^62-1; 1 is a mount's root."""
    return max(int.from_bytes(key[:8], "little") >> 2, 2)


class World:
    """What all nodes of one mount share: the repository, its reader, and the owner shown for what we make up."""

    def __init__(self, repository: Repository, reader: Reader) -> None:
        self.repository = repository
        self.reader = reader
        self.uid = os.getuid()
        self.gid = os.getgid()
        self.mounted_ns = time.time_ns()

    def made_up(self, key: NodeKey, mode: int, **fields: int | float) -> Attributes:
        """Attributes of a node that stands for a record and not for a stored entry."""
        fields.setdefault("mtime_ns", self.mounted_ns)
        return Attributes(
            ino=inode_of(key),
            mode=mode,
            uid=self.uid,
            gid=self.gid,
            **fields,  # type: ignore[arg-type]
        )

    @contextmanager
    def reading(self, snapshot: ObjectId) -> Iterator[None]:
        """Tell damage from removal: what is missing from a snapshot that is gone was taken by gc, and is no damage."""
        try:
            yield
        except CorruptError:
            self.repository.snapshot(snapshot)  # UnknownNameError if it is gone: ESTALE to whoever asked
            raise


def image_directory(
    repository: Repository, reader: Reader, snapshot: Snapshot, name: bytes = b"images"
) -> DirectoryNode:
    """The directory `name` of one snapshot, by itself. UnknownNameError where the snapshot has none."""
    root = SnapshotDirectory(World(repository, reader), snapshot)
    try:
        found = root.lookup(name)
    except FileNotFoundError:
        found = None
    if not isinstance(found, DirectoryNode):
        raise UnknownNameError(f"the snapshot {snapshot.id.hex()[:12]} has no directory {os.fsdecode(name)}")
    return found


class SnapshotDirectory(DirectoryNode):
    """snapshots/<id>: meta.json, and what the snapshot's tree has."""

    def __init__(self, world: World, snapshot: Snapshot) -> None:
        self._world = world
        self._snapshot = snapshot
        self._key = key_of(b"snapshot", snapshot.id)
        self.ino = inode_of(self._key)

    def attributes(self) -> Attributes:
        return self._world.made_up(
            self._key, stat.S_IFDIR | 0o555, mtime_ns=self._snapshot.created_ns, entry_timeout_s=CHANGING_S
        )

    def lookup(self, name: bytes) -> Node:
        if name == b"meta.json":
            return RecordFile(self._world, self._snapshot)
        return self._tree.lookup(name)

    def names(self) -> Sequence[bytes]:
        return [b"meta.json", *(name for name in self._tree.names() if name != b"meta.json")]

    @cached_property
    def _tree(self) -> _StoredTree:
        return _StoredTree(_SnapshotWorld(self._world, self._snapshot), self._key, self._snapshot.root)


class RecordFile(FileNode):
    """meta.json: the snapshot's record, for people and scripts."""

    def __init__(self, world: World, snapshot: Snapshot) -> None:
        self._world = world
        self._snapshot = snapshot
        self._key = key_of(b"meta.json", snapshot.id)
        self.ino = inode_of(self._key)

    @cached_property
    def _text(self) -> bytes:
        record = {
            "id": self._snapshot.id.hex(),
            "parents": [parent.hex() for parent in self._snapshot.parents],
            "created_ns": self._snapshot.created_ns,
            "message": self._snapshot.message,
            "meta": plain(self._snapshot.meta),
        }
        return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"

    def attributes(self) -> Attributes:
        return self._world.made_up(
            self._key, stat.S_IFREG | 0o444, size=len(self._text), mtime_ns=self._snapshot.created_ns
        )

    def open(self) -> OpenFile:
        return OpenBytes(self._text)


class OpenBytes(OpenFile):
    """A small file that is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int, room: bytearray) -> bytes:
        return self._data[offset : offset + length]

    def find(self, offset: int, *, hole: bool) -> int | None:
        return _find_in(len(self._data), offset, hole=hole)


def _find_in(size: int, offset: int, *, hole: bool) -> int | None:
    """`OpenFile.find` of a file without holes."""
    if offset >= size:
        return None
    return size if hole else offset


class _SnapshotWorld:
    """What the nodes of one snapshot share."""

    def __init__(self, world: World, snapshot: Snapshot) -> None:
        self.reader = world.reader
        self.snapshot = snapshot
        self.world = world

    def tree(self, ident: ObjectId) -> Tree:
        with self.world.reading(self.snapshot.id):
            return self.reader.tree(ident)

    @cached_property
    def links(self) -> Counter[Entry]:
        """How many names each file with several has. Reads every tree of the snapshot, once, at the first of them."""
        counts: Counter[Entry] = Counter()
        left = [self.snapshot.root]
        while left:
            for entry in self.tree(left.pop()).entries:
                if entry.kind == "d" and entry.content is not None:
                    left.append(entry.content)
                elif entry.is_linked:
                    counts[entry.inode_part] += 1
        return counts


class _StoredTree:
    """One Tree of the engine: its entries by name, and the nodes they make."""

    def __init__(self, world: _SnapshotWorld, key: NodeKey, ident: ObjectId | None) -> None:
        self._world = world
        self._key = key
        self._entries = world.tree(ident) if ident is not None else Tree(())
        # How its files are being read: at which position last, how far ahead, up to which position that was.
        self._last, self._step, self._named = -1, 1, 0
        # How many were read out of order, and how far the rest was named for that.
        self._others, self._swept = 0, 0

    def names(self) -> Sequence[bytes]:
        return [entry.name for entry in self._entries.entries]

    def ahead(self, entry: Entry) -> list[ObjectId]:
        """The contents of small files that will be wanted next and were not named yet: those that follow, for one who
        reads the files in order, so many more each time; some of all others, for one who has read many in any order (as
        grep does in a directory of 10,000)."""
        at = bisect_left(self._entries.entries, entry.name, key=attrgetter("name"))
        in_order = 0 < at - self._last <= MOST_LEFT_OUT
        self._last = at
        if not in_order:
            self._step, self._named = 1, 0
            return self._sweep()
        self._step = min(2 * self._step, MOST_AHEAD)
        first = max(at + 1, self._named)
        if first - at > self._step // 2:
            return []
        self._named = at + 1 + self._step
        return self._contents(first, self._named)

    def _sweep(self) -> list[ObjectId]:
        self._others += 1
        if self._others < READ_BEFORE_SWEEP or not self._may_be_swept:
            return []
        first = self._swept
        if first > SWEPT_AT_ONCE * (self._others - READ_BEFORE_SWEEP) // SWEEP_PACE:
            return []
        self._swept = first + SWEPT_AT_ONCE
        return self._contents(first, self._swept)

    @cached_property
    def _may_be_swept(self) -> bool:
        return sum(entry.size for entry in self._entries.entries if _is_small(entry)) <= MOST_SWEPT_BYTES

    def _contents(self, first: int, end: int) -> list[ObjectId]:
        return [one.content for one in self._entries.entries[first:end] if one.content and _is_small(one)]

    def lookup(self, name: bytes) -> Node:
        entry = self._entries.find(name)
        if entry is None:
            raise no_entry(name)
        if entry.is_linked:
            key = key_of(b"hard link", self._world.snapshot.id, msgspec.msgpack.encode(entry.inode_part))
        else:
            key = key_of(b"entry", self._key, name)
        if entry.kind == "f":
            return FileOfSnapshot(self._world, key, entry, self)
        return _NODES.get(entry.kind, StoredSpecial)(self._world, key, entry)


class _StoredNode(Node):
    """A node that an Entry describes."""

    def __init__(self, world: _SnapshotWorld, key: NodeKey, entry: Entry) -> None:
        self.ino = inode_of(key)
        self._world = world
        self._key = key
        self._entry = entry

    def attributes(self) -> Attributes:
        entry = self._entry
        return Attributes(
            ino=self.ino,
            mode=TYPE_BITS[entry.kind] | stat.S_IMODE(entry.mode),
            size=entry.size,
            holes=self._holes(),
            nlink=self._world.links[entry.inode_part] if entry.is_linked else 1,
            uid=entry.uid,
            gid=entry.gid,
            rdev=entry.rdev,
            mtime_ns=entry.mtime_ns,
        )

    def xattrs(self) -> Mapping[bytes, bytes]:
        return dict(self._entry.xattrs)

    def _holes(self) -> int:
        """Bytes of a file that take no blocks."""
        return 0


class StoredDirectory(_StoredNode, DirectoryNode):
    """A directory of a snapshot; its tree is read when something in it is named or listed."""

    def lookup(self, name: bytes) -> Node:
        return self._tree.lookup(name)

    def names(self) -> Sequence[bytes]:
        return self._tree.names()

    @cached_property
    def _tree(self) -> _StoredTree:
        return _StoredTree(self._world, self._key, self._entry.content)


class StoredSymlink(_StoredNode, Symlink):
    """A symbolic link of a snapshot; it may lead out of the mount, as it did when it was saved."""

    def target(self) -> bytes:
        return self._entry.target


class StoredSpecial(_StoredNode, Special):
    """A fifo, socket or device of a snapshot."""


class FileOfSnapshot(_StoredNode, FileNode):
    """A file of a snapshot, and the directory that it was found in."""

    def __init__(self, world: _SnapshotWorld, key: NodeKey, entry: Entry, tree: _StoredTree) -> None:
        super().__init__(world, key, entry)
        self._tree = tree

    def _holes(self) -> int:
        return self._zeros if self._entry.size > LEAF_SPAN else 0

    @cached_property
    def _zeros(self) -> int:
        # What is damaged is said when it is read: a directory must be listed all the same.
        with suppress(IjfsError):
            return self._world.reader.zero_leaf_bytes(self._entry.content) if self._entry.content else 0
        return 0

    @property
    def may_be_in_bulk(self) -> bool:
        return is_pages(self._entry.name)

    def open(self) -> OpenFile:
        world = self._world
        if self._entry.content is not None and _is_small(self._entry):
            if ahead := self._tree.ahead(self._entry):
                world.reader.prefetch(ahead)
            return OpenSmallFile(world, self._entry, self._entry.content)
        with world.world.reading(world.snapshot.id):
            return OpenStoredFile(world, world.reader.open(self._entry))


class OpenSmallFile(OpenFile):
    """A small file of a snapshot, open: looked up when it is read, as it is in the cache then, most likely."""

    def __init__(self, world: _SnapshotWorld, entry: Entry, content: ObjectId) -> None:
        self._world = world
        self._entry = entry
        self._content = content

    def read(self, offset: int, length: int, room: bytearray) -> bytes | memoryview:
        reader = self._world.reader
        plain = reader.cached_chunk(self._content)
        if plain is not None and len(plain) == self._entry.size:
            return memoryview(plain)[offset : offset + length]
        with self._world.world.reading(self._world.snapshot.id):
            return reader.open(self._entry).read(offset, length)

    def find(self, offset: int, *, hole: bool) -> int | None:
        return _find_in(self._entry.size, offset, hole=hole)


class OpenStoredFile(OpenFile):
    """A file of a snapshot, open."""

    def __init__(self, world: _SnapshotWorld, stored: StoredFile) -> None:
        self._world = world
        self._stored = stored
        self._next = 0
        self._asked = 0

    def read(self, offset: int, length: int, room: bytearray) -> memoryview:
        length = max(0, min(length, self._stored.size - offset))
        if length < BULK_BYTES:
            there = self._stored.cached(offset, length)
            self._read_ahead(offset, length)
            if there is not None:
                return there
        wanted = memoryview(room)[:length]
        with self._world.world.reading(self._world.snapshot.id):
            self._stored.read_into(offset, wanted)
        return wanted

    def find(self, offset: int, *, hole: bool) -> int | None:
        with self._world.world.reading(self._world.snapshot.id):
            return self._stored.find(offset, hole=hole)

    def _read_ahead(self, offset: int, length: int) -> None:
        """Have the engine decode what a sequential reader will want next, on the other cores meanwhile.

        The kernel has two requests under way, which may arrive in either order.
        """
        end = offset + length
        if not self._next or not self._next - length <= offset <= self._next + length:
            self._next = self._asked = end
            return
        self._next = max(self._next, end)
        start = max(self._asked, self._next)
        end = min(self._next + READ_AHEAD_BYTES, self._stored.size)
        if end - start >= READ_AHEAD_STEP or end == self._stored.size > start:
            self._asked = end
            self._stored.prefetch(start, end - start)


def _is_small(entry: Entry) -> bool:
    return entry.kind == "f" and entry.size <= SMALL_BYTES


_NODES: dict[str, Callable[[_SnapshotWorld, NodeKey, Entry], Node]] = {
    "d": StoredDirectory,
    "l": StoredSymlink,
}
