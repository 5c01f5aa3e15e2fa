"""The records of the engine: what a snapshot, a tree, a file and a leaf are, and their bytes in a pack.

Every layer above reads these structs. The encodings are canonical (one value, one sequence of bytes), because
an object's id is the hash of them; docs/format.md lists the fields by number.
"""

from __future__ import annotations

import itertools
import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from ijfs_engine.errors import CorruptError
from ijfs_engine.format.frames import ID_SIZE

ObjectId: TypeAlias = bytes
"""32 bytes, BLAKE3-256; shown as lower-case hex."""

_T = TypeVar("_T")

EntryKind: TypeAlias = Literal["f", "d", "l", "p", "s", "c", "b"]

TYPE_BITS: Final[dict[EntryKind, int]] = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
}
"""The type bits of a mode (`stat.S_IFMT`), by kind."""

KINDS: Final[dict[int, EntryKind]] = {bits: kind for kind, bits in TYPE_BITS.items()}
"""The kind of what has these type bits."""


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One name in a directory. Field order is the format: append, never move."""

    name: bytes
    """As the kernel gives it: any bytes but NUL and `/`."""
    kind: EntryKind
    """'f' file, 'd' directory, 'l' symlink, 'p' fifo, 's' socket, 'c' and 'b' devices."""
    mode: int
    """Permission bits with setuid, setgid and sticky: `stat.S_IMODE`."""
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    """Bytes of a file; length of a symlink's target; 0 for the rest."""
    content: ObjectId | None = None
    """A file's bytes (None when it has none), a directory's Tree. A file's content is named by the id of a
    chunk (the file is that one chunk), of a Leaf (it fits one) or of a FileContent: the index says which."""
    target: bytes = b""
    """What a symlink points at."""
    rdev: int = 0
    """Device number, as `os.makedev` packs it."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Extended attributes, sorted by name."""
    link: int = 0
    """Entries of one snapshot with the same number above 0, and the same in all but the name, are names of one file."""

    @property
    def is_linked(self) -> bool:
        """Whether it may be one of several names of one file; a directory has one, whatever its entry says."""
        return self.link > 0 and self.kind != "d"

    @property
    def inode_part(self) -> Entry:
        """What all names of one file have in common. Entries of the same link number that differ in it are no links."""
        return msgspec.structs.replace(self, name=b"")


class Tree(msgspec.Struct, frozen=True, array_like=True):
    """A directory: its entries, sorted by name."""

    entries: tuple[Entry, ...]

    def find(self, name: bytes) -> Entry | None:
        """The entry of that name, by bisection."""
        low, high = 0, len(self.entries)
        while low < high:
            middle = (low + high) // 2
            if self.entries[middle].name < name:
                low = middle + 1
            else:
                high = middle
        found = low < len(self.entries) and self.entries[low].name == name
        return self.entries[low] if found else None


class FileContent(msgspec.Struct, frozen=True, array_like=True):
    """A file that takes more than one leaf, or has a page layout: its leaves in order.

    `leaf_ids` holds 32 bytes a leaf, `leaf_sizes` 4 (little-endian plain bytes). `layout` names a LAYOUT
    object (the encoding is `page_layout.py`'s) for a CRIU pages file.
    """

    size: int
    leaf_ids: bytes
    leaf_sizes: bytes
    layout: ObjectId | None = None

    @classmethod
    def of(cls, leaves: Sequence[tuple[ObjectId, int]], *, layout: ObjectId | None = None) -> FileContent:
        """From (leaf id, plain bytes) pairs."""
        sizes = [size for _, size in leaves]
        packed = struct.pack(f"<{len(sizes)}I", *sizes)
        return cls(sum(sizes), b"".join(leaf for leaf, _ in leaves), packed, layout)

    def leaves(self) -> Iterator[tuple[ObjectId, int]]:
        """(leaf id, plain bytes), in file order."""
        for at, (size,) in enumerate(struct.iter_unpack("<I", self.leaf_sizes)):
            yield self.leaf_ids[at * ID_SIZE : (at + 1) * ID_SIZE], size


LEAF_SPAN: Final = 4 << 20
"""A leaf covers at most this many plain bytes; page images are cut at multiples of it in virtual addresses."""
ZERO_RUN: Final = 0xFFFFFFFF
"""In a leaf's `index` column: these bytes are zeros, no chunk."""


class Leaf(msgspec.Struct, frozen=True):
    """At most `LEAF_SPAN` plain bytes of a file, as extents: three columns of unsigned 32-bit numbers.

    Extent i is `length[i]` bytes from `offset[i]` of the chunk whose id is the `index[i]`-th of `ids`, or zeros
    where `index[i]` is `ZERO_RUN` (then `offset[i]` is 0). `ids` are distinct and stand in the order of first use.
    """

    ids: bytes
    index: array[int]
    offset: array[int]
    length: array[int]

    @property
    def size(self) -> int:
        """Plain bytes covered."""
        return sum(self.length)

    def chunk_ids(self) -> list[bytes]:
        """The distinct chunks, in order of first use."""
        return [self.ids[at : at + ID_SIZE] for at in range(0, len(self.ids), ID_SIZE)]


class Snapshot(msgspec.Struct, frozen=True):
    """A saved program: the record. `id` is the hash of the rest."""

    id: ObjectId
    root: ObjectId
    parents: tuple[ObjectId, ...]
    created_ns: int
    message: str
    meta: dict[str, Any]
    size: int | None = None
    """What its files add up to, as `ls -l` shows them. None where the record does not say."""
    added: int | None = None
    """Pack bytes that storing it took, but for this record. None where the record does not say."""


class _SnapshotBody(msgspec.Struct, frozen=True, array_like=True):
    root: bytes
    parents: tuple[bytes, ...]
    created_ns: int
    message: str
    meta: dict[str, Any]
    size: int | None = None
    added: int | None = None


MAX_DEPTH: Final = 100
"""Levels of a snapshot's meta. Those that ijfs makes have 6."""
_MODES: Final = 0o7777
_IDS: Final = (1 << 32) - 2
_NAME: Final = 255  # NAME_MAX of every filesystem of Linux
_TARGET: Final = 4095  # PATH_MAX, with its NUL
_DEVICES: Final = (1 << 32) - 1  # mknod(2) takes no more
"""The highest owner: the number above stands for none."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_tree_decoder = msgspec.msgpack.Decoder(Tree)
_file_decoder = msgspec.msgpack.Decoder(FileContent)
_snapshot_decoder = msgspec.msgpack.Decoder(_SnapshotBody)
_LEAF_HEAD: Final = struct.Struct("<II")


def encode_tree(tree: Tree) -> bytes:
    """Canonical bytes. The entries must be sorted by name and distinct: ValueError otherwise."""
    names = [entry.name for entry in tree.entries]
    if any(a >= b for a, b in itertools.pairwise(names)):
        raise ValueError("the entries of a tree are sorted by name, each name once")
    return _encoder.encode(tree)


def decode_tree(data: bytes | memoryview) -> Tree:
    """Parse and check order and names; CorruptError."""
    tree = _decode(_tree_decoder, data, "tree")
    previous = b""
    for entry in tree.entries:
        if entry.name <= previous or b"/" in entry.name or b"\0" in entry.name or entry.name in (b".", b".."):
            raise CorruptError(f"a tree holds the name {entry.name[:_NAME]!r} where it may not stand")
        if len(entry.name) > _NAME:
            raise CorruptError(f"a tree holds a name of {len(entry.name)} bytes, which no file can have")
        if entry.content is not None and len(entry.content) != ID_SIZE:
            raise CorruptError(f"the tree entry {entry.name!r} points at no id")
        wrong = _wrong(entry)
        if wrong is not None:
            raise CorruptError(f"the tree entry {entry.name!r} has {wrong} that no file can have")
        previous = entry.name
    return tree


def _wrong(entry: Entry) -> str | None:
    """The field of an entry that no kernel would give or take."""
    if not 0 <= entry.mode <= _MODES:
        return f"the mode {entry.mode:#o}"
    if not (0 <= entry.uid <= _IDS and 0 <= entry.gid <= _IDS):
        return f"an owner, {entry.uid}:{entry.gid},"
    if entry.size < 0 or entry.rdev < 0 or entry.link < 0:
        return "a size, device or link below 0"
    if (entry.content is not None) != (entry.kind == "d") and entry.kind != "f":
        return "bytes" if entry.content is not None else "no tree,"
    if entry.rdev > _DEVICES:
        return f"the device {entry.rdev:#x}"
    if entry.kind == "l" and (not 0 < len(entry.target) <= _TARGET or b"\0" in entry.target):
        return "a target"
    if entry.xattrs and any(not name or b"\0" in name for name, _ in entry.xattrs):
        return "an extended attribute"
    return None


def encode_file(content: FileContent) -> bytes:
    """Canonical bytes of a file object."""
    return _encoder.encode(content)


def decode_file(data: bytes | memoryview) -> FileContent:
    """Parse and check that the columns agree; CorruptError."""
    content = _decode(_file_decoder, data, "file")
    count, rest = divmod(len(content.leaf_ids), ID_SIZE)
    total = sum(size for (size,) in struct.iter_unpack("<I", content.leaf_sizes)) if not rest else -1
    if rest or len(content.leaf_sizes) != 4 * count or total != content.size:
        raise CorruptError("a file object's leaves do not add up to its size")
    return content


def encode_leaf(leaf: Leaf) -> bytes:
    """u32 ids, u32 extents, the ids, then the three columns, all little-endian."""
    head = _LEAF_HEAD.pack(len(leaf.ids) // ID_SIZE, len(leaf.index))
    return b"".join((head, leaf.ids, leaf.index.tobytes(), leaf.offset.tobytes(), leaf.length.tobytes()))


def decode_leaf(data: bytes | memoryview) -> Leaf:
    """Parse and check every extent's chunk number and the span; CorruptError."""
    view = memoryview(data)
    if len(view) < _LEAF_HEAD.size:
        raise CorruptError("a leaf is cut short")
    n_ids, n_extents = _LEAF_HEAD.unpack_from(view)
    if len(view) != _LEAF_HEAD.size + n_ids * ID_SIZE + n_extents * 12:
        raise CorruptError("a leaf's columns do not fill it")
    at = _LEAF_HEAD.size + n_ids * ID_SIZE
    columns = []
    for number in range(3):
        column: array[int] = array("I")
        column.frombytes(view[at + number * n_extents * 4 : at + (number + 1) * n_extents * 4])
        columns.append(column)
    index, offset, length = columns
    numbers = set(index) - {ZERO_RUN}
    if max(numbers, default=-1) >= n_ids or sum(length) > LEAF_SPAN:
        raise CorruptError("a leaf's extents point outside it")
    return Leaf(bytes(view[_LEAF_HEAD.size : at]), index, offset, length)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Canonical bytes of everything but the id. ValueError for meta that is too deep."""
    if not _is_shallow(snapshot.meta):
        raise ValueError(f"the meta of a snapshot nests more than {MAX_DEPTH} levels deep")
    return _encoder.encode(_SnapshotBody(*msgspec.structs.astuple(snapshot)[1:]))


def decode_snapshot(ident: ObjectId, data: bytes | memoryview) -> Snapshot:
    """Parse; CorruptError."""
    body = _decode(_snapshot_decoder, data, "snapshot")
    if any(len(parent) != ID_SIZE for parent in (body.root, *body.parents)):
        raise CorruptError("a snapshot points at no id")
    if not _is_shallow(body.meta):
        raise CorruptError(f"the meta of a snapshot nests more than {MAX_DEPTH} levels deep")
    return Snapshot(ident, *msgspec.structs.astuple(body))


def _is_shallow(meta: dict[str, Any]) -> bool:
    """Whether whoever goes through it by recursion comes to its end."""
    level: list[Any] = [meta]
    for _ in range(MAX_DEPTH):
        below = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in below for value in values if isinstance(value, dict | list | tuple)]
        if not level:
            return True
    return False


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes | memoryview, what: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        # The last three: text that is not UTF-8, a map with a map for a key, and what lies in itself too often.
        raise CorruptError(f"a {what} object cannot be parsed: {error}") from error


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one snapshot takes, against the other snapshots of the set that was asked for. All in bytes.

    `logical`: what its files add up to, as `ls -l` shows them. `stored`: pack bytes that it reaches, each frame
    once, metadata counted. `unique`: the part of `stored` that no other reaches, which removing it would free;
    `shared`: the rest.
    """

    id: ObjectId | None
    logical: int
    stored: int
    unique: int
    shared: int


class DiskUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `Repository.du`: one Usage per snapshot in the order asked, and the whole set as one.

    In `total`, `stored` counts each frame once, `unique` is what exactly one of the set reaches, `shared` what
    several do. `sharing` is the share of the snapshots' stored bytes that they have in common with another of
    the set (0 to 1): the sum of `shared` over the sum of `stored`.
    """

    snapshots: list[Usage]
    total: Usage
    sharing: float


class KeptPack(msgspec.Struct, frozen=True, kw_only=True):
    """A pack that gc should have written anew and did not."""

    pack: str
    """Its file's name."""
    why: str
    """What is damaged in it."""


class Holder(msgspec.Struct, frozen=True):
    """A process that has packs open which gc removed: they take up room until it closes them."""

    pid: int
    name: str
    """The beginning of its command line."""
    packs: int
    bytes: int


class GcReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `Repository.gc` did, or with dry_run would do. Sizes are bytes on disk."""

    dry_run: bool
    snapshots_removed: int
    chunks_removed: int
    objects_removed: int
    chunks_condemned: int
    """Unreachable, but kept until the sessions that may have found them end; the next gc takes them."""
    packs_removed: int
    packs_rewritten: int
    bytes_before: int
    bytes_after: int
    packs_kept: tuple[KeptPack, ...] = ()
    """Mostly dead, but damaged in what is still needed: `fsck` says more, and what to do."""
    held: tuple[Holder, ...] = ()
    """Who holds what is gone open, and so not free yet, as far as this user may see."""
    chunks_recompressed: int = 0
    """Stored anew in fewer bytes."""

    @property
    def freed(self) -> int:
        """Bytes that packs and journal give back to the filesystem. The index is counted as it was before."""
        return max(0, self.bytes_before - self.bytes_after)


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that fsck found wrong, and whom it hurts."""

    what: str
    """'frame' (stored bytes), 'missing', 'content' (a record that is whole and cannot be), 'index', 'ref', 'journal',
    'pack', 'format', 'key' (a file that opens an encrypted repository)."""
    id: ObjectId | None
    where: str
    """The pack and offset, or the name, where it is."""
    message: str
    snapshots: tuple[ObjectId, ...] = ()
    """Snapshots that cannot be read whole because of it."""
    files: tuple[str, ...] = ()
    """Up to 20 paths in them, as `<snapshot hex>:<path>`."""


class FsckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `Repository.fsck` checked, found and, with repair, mended. `strays`: packs of another repository and
    what is no file under a pack's name, which somebody put here; they are left alone."""

    snapshots: int
    objects: int
    chunks: int
    packs: int
    bytes_read: int
    damage: list[Damage]
    repaired: list[str]
    strays: list[str] = []

    @property
    def clean(self) -> bool:
        """Whether nothing was wrong."""
        return not self.damage


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and sizes of a whole repository, in bytes on disk; from the index, in milliseconds."""

    snapshots: int
    branches: int
    tags: int
    chunks: int
    objects: int
    sidecars: int
    packs: int
    pack_bytes: int
    index_bytes: int
    journal_bytes: int
    format_version: int
