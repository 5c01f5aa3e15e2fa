"""The files a program wrote: read while it stands still, put back before it runs again. Called by freeze.py,
restore.py; keeper/state.py keeps the StatCache between saves.

What is saved are the writable layers: the root overlay's upper, each volume's upper at the volume's path (both in
`files/` of the snapshot), /dev/shm (in `shm/`), and what a program put into /dev (in `dev/`, where there is any).
Whiteouts (character devices 0/0) and the overlay's own attributes (trusted.overlay.*) are files and attributes like all
others, so that what was deleted stays deleted.

Only what changed since the last save is read, into memory that was faulted in before (or copied to a staging directory
where it is too large for that): while the program runs, and while it stands still once more what changed meanwhile
(ahead.py). Unchanged is what has the same inode, size, mode,
mtime and ctime, under two conditions, as git's index has them: the times were old when the file was read (a change in
the same clock tick would not show), and no process had it mapped for shared writing (such a write may leave mtime
alone). Everything else is read again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ijfs.live.checkpoint.ahead import LayerAhead, StatKey, key_of
from ijfs.live.checkpoint.layers import WritableLayer, walk
from ijfs.live.checkpoint.staging import Staging
from ijfs.live.model.records import Volume
from ijfs.live.process import descriptors, procfs
from ijfs.live.process.descriptors import FileId, Leases
from ijfs.live.sandbox.volumes import is_below
from ijfs_engine import Arena, Descent, Entry, FoundOnDisk, Segments
from ijfs_engine.errors import StorageError

# A file's times are believed only when they are older than this at the moment it is read: the kernel's clock for them
# ticks every 1–10 ms (CONFIG_HZ), finer only from 6.13 on.
RACY_NS = 20_000_000

# What a program does to its files while they are looked at.
GONE = (FileNotFoundError, NotADirectoryError)

# A file larger than this is copied to the staging directory instead of into memory.
LARGEST_IN_MEMORY = 256 << 20


# What the system takes of a path in one piece (PATH_MAX).
_LONGEST = 4096


StatCache = dict[str, StatKey]
"""What is in the snapshot that a program stands on, by path in its tree, as it was when it was looked at."""


@dataclass(slots=True)
class Item:
    """One captured file: its place in the snapshot's tree, its metadata, its bytes (None: as in the parent)."""

    at: str
    entry: Entry
    source: bytes | Segments | Path | None = None
    unchanged: bool = False
    """As in the parent; of a directory, its metadata and the names in it."""
    key: StatKey | None = None


@dataclass(slots=True)
class Capture:
    """A workspace as it was at one moment."""

    items: dict[str, Item] = field(default_factory=dict)
    """By path in the snapshot's tree."""
    stat_cache: StatCache = field(default_factory=dict)
    staging: Staging | None = None
    layers: Sequence[WritableLayer] = ()
    inodes: dict[str, int] = field(default_factory=dict)
    """Inode numbers that are to stay, by path in the snapshot's tree."""

    @property
    def bytes_total(self) -> int:
        """Bytes of all files."""
        return sum(item.entry.size for item in self.items.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of those that are not as in the snapshot before."""
        return sum(item.entry.size for item in self.items.values() if item.source is not None)

    def discard(self) -> None:
        """Remove what was staged."""
        if self.staging is not None:
            self.staging.discard()


class LayerWalker:
    """One capture in the making. `measure` and `read_ahead` while the program runs, `capture` while it stands still.

    What was seen before is looked at again while it stands still, by compiled code; only what changed since is read
    then. Without `measure`, everything is.
    """

    def __init__(self, layers: Sequence[WritableLayer], stat_cache: StatCache, staging: Path) -> None:
        self._layers = layers
        self._stat_cache = stat_cache
        self._staging = Staging(staging)
        self._outside = Path()
        self._leases: Callable[[], Leases] = dict
        self._links: dict[FileId, int] = {}
        self._ahead: dict[str, LayerAhead] = {}
        self._capture = Capture(staging=self._staging, layers=layers)
        self._mapped_before: frozenset[str] = frozenset()

    def measure(self, mapped: frozenset[str] = frozenset()) -> int:
        """Look at everything; the bytes that a capture reads: what to fault in beforehand. `mapped`: as `capture` has
        it, but a moment before this. Bytes that come into a file by a mapping which is gone by then do not show."""
        self._mapped_before = mapped
        total = 0
        for layer in self._layers:
            old_ns = time.time_ns() - RACY_NS
            ahead = LayerAhead(layer.outside, old_ns, without=layer.without, changing=layer.shared)
            for at, found in walk(layer, running=True):
                with contextlib.suppress(*GONE):
                    item = self._take(layer, at, found)
                    ahead.saw(at, found, key_of(found.status))
                    total += item.entry.size if _is_read(item) and item.entry.size <= LARGEST_IN_MEMORY else 0
            if ahead.usable:
                self._ahead[layer.at] = ahead
            else:
                self._forget_all(layer.at)
        return total

    def read_ahead(self, arena: Arena, leased: Leases | None = None) -> None:
        """Read what a capture has to have, for as far as it stays as it is until then. Not what is `leased`: its holder
        would be told."""
        for ahead in self._ahead.values():
            for line, at, path in ahead.files():
                item = self._capture.items.get(at)
                if item is not None and _is_read(item):
                    try:
                        self._read_early(item, path, arena, leased or {})
                    except (OSError, StorageError):
                        item.source = None
                        ahead.distrust(line)

    def look(self) -> None:
        """Look at what was measured once more: the program stands still, and `capture` is to come. In any thread."""
        for ahead in self._ahead.values():
            ahead.look()

    def forget_look(self) -> None:
        """Somebody else than the program has changed its files since: `capture` looks itself."""
        for ahead in self._ahead.values():
            ahead.forget_look()

    def capture(self, arena: Arena | None, mapped: frozenset[str], leases: Callable[[], Leases] = dict) -> Capture:
        """Read everything that changed, into the arena; without one (nothing changes any more) files are named, to be
        read later. `mapped`: paths inside that some process may write through a mapping. `leases`: says which files
        are read by their holders' descriptors (process/descriptors.py); asked where something is read."""
        self._leases = leases
        now = time.time_ns()
        for layer in self._layers:
            self._outside = layer.outside
            ahead = self._ahead.get(layer.at)
            for at, found in walk(layer) if ahead is None else self._changed(ahead, layer, mapped):
                try:
                    self._capture_one(layer, at, found, arena)
                except GONE:
                    if not layer.shared:
                        raise
                    self._forget(at)
                trusted = found.status.st_ctime_ns < now - RACY_NS and layer.place_inside(at) not in mapped
                if not trusted:
                    self._capture.stat_cache.pop(at, None)
        return self._capture

    def discard(self) -> None:
        """Remove what was staged for a capture that did not come about."""
        self._staging.discard()

    def _changed(
        self, ahead: LayerAhead, layer: WritableLayer, mapped: frozenset[str]
    ) -> Iterator[tuple[str, FoundOnDisk]]:
        """What is not as it was seen; what is gone is forgotten."""
        paths = mapped | self._mapped_before
        maybe = {layer.at + path[len(layer.inside) :] for path in paths if path.startswith(f"{layer.inside}/")}
        for at, found in ahead.changed(maybe):
            if found is None:
                self._forget(at)
            else:
                yield at, found

    def _capture_one(self, layer: WritableLayer, at: str, found: FoundOnDisk, arena: Arena | None) -> None:
        item = self._take(layer, at, found)
        if _is_read(item):
            item.source = self._source(found, arena, shared=layer.shared)
            if layer.shared:  # somebody may have made it shorter meanwhile
                item.entry = msgspec.structs.replace(item.entry, size=_length(item.source))

    def _take(self, layer: WritableLayer, at: str, found: FoundOnDisk) -> Item:
        """The item of what is at a path, without its bytes."""
        item = Item(at, self._entry(found))
        key = key_of(found.status)
        self._forget(at)
        self._capture.items[at] = item
        if layer.numbered:
            self._capture.inodes[at] = key.inode
        item.key = key
        item.unchanged = self._stat_cache.get(at) == key
        self._capture.stat_cache[at] = key
        return item

    def _forget(self, at: str) -> None:
        """Nothing is at that path any more."""
        for part in (self._capture.items, self._capture.stat_cache, self._capture.inodes):
            part.pop(at, None)

    def _forget_all(self, top: str) -> None:
        for at in [path for path in self._capture.items if path == top or path.startswith(f"{top}/")]:
            self._forget(at)

    def _entry(self, found: FoundOnDisk) -> Entry:
        entry, status = found.entry(), found.status
        if entry.kind == "d" or status.st_nlink < 2:
            return entry
        link = self._links.setdefault((status.st_dev, status.st_ino), len(self._links) + 1)
        return msgspec.structs.replace(entry, link=link)

    def _read_early(self, item: Item, path: bytes, arena: Arena, leased: Leases) -> None:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) in leased:
                raise StorageError(f"{item.at} is leased")
            with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
                item.source = self._bytes_of(file.fileno(), item.entry.size, item.at, arena)
        finally:
            os.close(fd)

    def _source(self, found: FoundOnDisk, arena: Arena | None, *, shared: bool) -> bytes | Segments | Path:
        size = found.status.st_size
        path = self._outside / os.fsdecode(found.path)
        if arena is None and size and len(os.fsencode(path)) < _LONGEST:
            return path
        holder = self._leases().get((found.status.st_dev, found.status.st_ino))
        with descriptors.opened(found.at, holder, found.directory) as fd:
            return self._bytes_of(fd, size, os.fsdecode(found.path), arena, shared=shared)

    def _bytes_of(
        self, fd: int, size: int, shown: str, arena: Arena | None, *, shared: bool = False
    ) -> bytes | Segments | Path:
        """StorageError where it became shorter, unless it is `shared`: then what there is of it."""
        if size == 0:
            return b""
        if size > LARGEST_IN_MEMORY or arena is None:
            return self._staging.copy(fd, min(size, os.fstat(fd).st_size) if shared else size)
        return _read(fd, size, shown, arena, shared=shared)


def _is_read(item: Item) -> bool:
    return item.entry.kind == "f" and not item.unchanged and item.source is None


def _length(source: bytes | Segments | Path) -> int:
    if isinstance(source, Path):
        return source.stat().st_size
    return len(source) if isinstance(source, bytes) else source.nbytes


def _read(fd: int, size: int, shown: str, arena: Arena, *, shared: bool) -> Segments:
    file = arena.new_file(size)
    while file.size < size:
        count = os.readv(fd, [file.tail(size - file.size)])
        if count == 0 and shared:
            break
        if count == 0:
            raise StorageError(f"{shown} became shorter while it was read")
        file.advance(count)
    return file.segments()


def stat_cache_of(layers: Sequence[WritableLayer], before_ns: int) -> StatCache:
    """Keys of files that were put back before `before_ns` (wall clock), when the program did not run yet."""
    stat_cache: StatCache = {}
    for layer in layers:
        if layer.shared:  # the host's own: nobody has put it back
            continue
        for at, found in walk(layer, running=True):
            status = found.status
            if stat.S_ISREG(status.st_mode) and status.st_ctime_ns < before_ns - RACY_NS:
                stat_cache[at] = key_of(status)
    return stat_cache


def mapped_for_writing(pids: Sequence[int]) -> frozenset[str]:
    """Paths, as the programs see them, that a process maps shared and writable."""
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines()
        except OSError:
            continue
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[1][1] == "w" and fields[1][3] == "s":
                found.add(fields[5].removesuffix(" (deleted)"))
    return frozenset(found)


def leased_in(pid: int) -> Leases:
    """descriptors.leased_for_writing of every process in the pid namespace of `pid`."""
    return descriptors.leased_for_writing(procfs.processes_in("pid", procfs.namespace_id(pid, "pid")))


def mapped_in(pid: int) -> frozenset[str]:
    """mapped_for_writing of every process in the pid namespace of `pid`."""
    return mapped_for_writing(procfs.processes_in("pid", procfs.namespace_id(pid, "pid")))


def put_back(
    export: Callable[[str, Path], None],
    upper: Path,
    volumes: Sequence[tuple[Volume, Path]],
    *,
    same_lower: bool = True,
) -> None:
    """Fill new, empty writable layers from a snapshot: `export` writes a tree of it into a directory.

    The volumes' files come in the root's tree and are moved to their layers; an empty directory stays, to mount on.
    Where one lies in a folder that the host has itself, its files come by themselves.
    A symbolic link on the way to a volume is an error: what it leads to is not the snapshot's.
    Without `same_lower` the root's layer will stand on another copy of what it stood on.
    """
    export("files", upper)
    _forget_origin(upper)
    if not same_lower:
        forget_origins(upper)
    of_host = [volume.path for volume, _ in volumes if volume.kind == "shared"]  # nothing in them was exported
    deepest_first = sorted(volumes, key=lambda pair: pair[0].path.count("/"), reverse=True)
    top = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for volume, target in deepest_first:
            try:
                _separate(top, volume, target)
                if volume.is_layer and is_below(Path(volume.path).parent, of_host):
                    export(f"files{volume.path}", target)
            except OSError as error:
                raise StorageError.of(f"cannot put back {volume.path}", error) from error
    finally:
        os.close(top)


def _separate(top: int, volume: Volume, target: Path) -> None:
    """Move one volume's files to its own layer."""
    *above, name = filter(None, os.fsencode(volume.path).split(b"/"))
    with Descent(top) as walk:
        for part in above:
            _make_directory(part, walk.here)
            walk.enter(part)
        if volume.is_layer and _is_directory(name, walk.here):
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()
            os.rename(name, target, src_dir_fd=walk.here)
            _forget_origin(target)
        target.mkdir(exist_ok=True)
        _make_directory(name, walk.here)
        # Not through a symbolic link either: it will be mounted on.
        walk.enter(name)


def _make_directory(name: bytes, above: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)


def _is_directory(name: bytes, above: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def forget_origins(upper: Path) -> None:
    """Let a whole layer stand on other files than those it was copied up from: an overlay that is to be found by file
    handles (nfs_export) shows nothing of a lower directory whose handle is not the recorded one."""
    for directory, _, files in os.walk(upper):
        for path in (directory, *(os.path.join(directory, name) for name in files)):
            with contextlib.suppress(OSError):
                os.removexattr(path, "trusted.overlay.origin", follow_symlinks=False)


def _forget_origin(root: Path) -> None:
    """Let an overlay's root be mounted over another machine's files: what it was mounted over is checked otherwise."""
    for name in ("trusted.overlay.origin", "trusted.overlay.uuid"):
        with contextlib.suppress(OSError):
            os.removexattr(root, name)
