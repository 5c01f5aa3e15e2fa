"""`ijfs push`: what a store lacks of some snapshots goes there as packs, then one operation lists them and moves refs.

Frames are copied as they are, checked by their checksums, in the order in which they lie here. What was sent by a push
that broke off is known to the far index and not sent again. A session is open meanwhile, so that no gc here takes
what is being read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Final, NamedTuple

from ijfs_engine.errors import ConflictError, CorruptError, UnknownNameError
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.place import Place
from ijfs_engine.format.records import ObjectId
from ijfs_engine.maintenance.pack_source import PackSource, SoundFrame
from ijfs_engine.maintenance.reachability import TreeWalker, split, walk
from ijfs_engine.remote import indexes
from ijfs_engine.remote.bucket import RemoteError
from ijfs_engine.remote.keys import send_keys
from ijfs_engine.remote.known import KnownTree
from ijfs_engine.remote.operation import Change, Listed, Moved
from ijfs_engine.remote.packing import Sender, working_set_name
from ijfs_engine.remote.remote import Remote
from ijfs_engine.remote.signed import send_signatures
from ijfs_engine.remote.sweeps import swept_packs
from ijfs_engine.remote.view import View, settled, shown_refs, split_packs
from ijfs_engine.storage import listed, working_sets
from ijfs_engine.storage.index import CHUNKS, OBJECTS
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.refs import whoami
from ijfs_engine.util.progress import Progress

_ATTEMPTS: Final = 3
"""Looks for frames that gc moves meanwhile."""


class PushReport(NamedTuple):
    """What a push did. `refs`: name there → snapshot; `apart`: refs that went on elsewhere → the name that ours got."""

    snapshots: list[ObjectId]
    refs: dict[str, ObjectId]
    apart: dict[str, str]
    packs: int
    sent: int
    requests: int


def push(
    repository: OpenRepository,
    remote: Remote,
    refs: Mapping[str, ObjectId],
    *,
    also: Sequence[ObjectId] = (),
    without: Set[bytes] = frozenset(),
    progress: Progress | None = None,
) -> PushReport:
    """Bring refs (`branch/NAME`, `tag/NAME`) and what they reach to a remote, and snapshots that nothing names there.
    Packs of the store that are `without` worth count as absent, and what needs them is sent and listed anew.

    RemoteError, CorruptError for what is damaged here; then nothing has changed in the tree there.
    """
    before = remote.bucket.traffic.requests, remote.bucket.traffic.sent
    remote.find_tree(make=True)
    send_keys(repository.directory, remote.bucket)
    with repository.session():
        view = remote.log.refresh()
        new = _new_snapshots(repository, view, [*refs.values(), *also], without)
        places: dict[str, str] = {}
        with contextlib.closing(_Reached(repository, remote, new, without)) as reached:
            packs = _send_all(remote, reached, new, progress or (lambda phase, done, total: None))

            def changes(now: View) -> list[Change]:
                places.update(_plan_refs(repository, now, refs))
                moves = {place: refs[name] for name, place in places.items()}
                moved = {name: ident for name, ident in moves.items() if shown_refs(now).get(name) != ident}
                # What a ref is moved to is listed again: then a removal elsewhere, of which we do not know, keeps it.
                fresh = {*moved.values(), *(i for i in new if without or i not in now.listings)}
                moving = [*settled(now), *(_moved(now, name, ident) for name, ident in moved.items())] if moved else []
                return [*reached.listings(fresh, now), *moving]

            remote.log.add(changes, who=whoami(), host=os.uname().nodename, why="push")
        _send_working_sets(repository, remote, new)
        send_signatures(repository.directory, remote, [*new, *refs.values(), *also])
    remote.remember()
    requests, sent = remote.bucket.traffic.requests - before[0], remote.bucket.traffic.sent - before[1]
    moves = {place: refs[name] for name, place in places.items()}
    apart = {name: place for name, place in places.items() if name != place}
    return PushReport(new, moves, apart, packs, sent, requests)


def _send_all(
    remote: Remote, reached: _Reached, new: Sequence[ObjectId], progress: Callable[[str, int, int], None]
) -> int:
    """Send what the store lacks; how many packs that took. What a gc of it marked meanwhile is sent anew, and so is
    what is not known to be there any more because another process here made the index forget."""
    packs = 0
    for _ in range(_ATTEMPTS):
        packs += reached.send(progress)
        with contextlib.suppress(ConflictError):
            needed = {pack for one in reached.listings(new, remote.log.view) for pack in split_packs(one.packs)}
            if not needed & going(remote):
                return packs
            remote.far.forget_all()
        reached.learn()
    raise RemoteError(f"a gc of {remote.url} takes what is sent", hint="push again when it is done")


def going(remote: Remote) -> set[bytes]:
    """The packs that a gc of the store is about to delete."""
    return swept_packs(remote.bucket) - remote.log.view.packs()


def _moved(view: View, name: str, ident: ObjectId) -> Moved:
    return Moved(name, ident, tuple(view.refs.get(name, {})))


def _new_snapshots(
    repository: OpenRepository, view: View, heads: Iterable[ObjectId], without: Set[bytes]
) -> list[ObjectId]:
    """What the tree there lacks of some snapshots and their ancestors, parents first; and those of them that need packs
    which count as absent."""
    found: dict[ObjectId, None] = {}
    stack = list(heads)
    while stack:
        ident = stack.pop()
        there = view.listings.get(ident)
        if ident not in found and (there is None or there.pack_ids() & without):
            found[ident] = None
            stack += listed.parents(repository, ident)
    return list(reversed(found))


def _plan_refs(repository: OpenRepository, view: View, refs: Mapping[str, ObjectId]) -> dict[str, str]:
    """Under which name each ref goes: its own, unless what is there under it would lose its name. Those that keep
    theirs come first: a pull may have brought the very name that another would get."""
    shown = shown_refs(view)

    def keeps(name: str, ident: ObjectId) -> bool:
        there = shown.get(name)
        return there is None or there == ident or _follows(repository, view, ident, there)

    given = {name: ident for name, ident in refs.items() if keeps(name, ident)}
    places = {name: name for name in given}
    for name, ident in refs.items():
        if name not in places:
            named = {**shown, **given}
            taken = {n for n, at in named.items() if at != ident and not _follows(repository, view, ident, at)}
            place = _beside(taken, f"{name}@{os.uname().nodename}")
            places[name], given[place] = place, ident
    return places


def _beside(taken: Set[str], wish: str) -> str:
    number, name = 1, wish
    while name in taken:
        number += 1
        name = f"{wish}.{number}"
    return name


def _follows(repository: OpenRepository, view: View, ident: ObjectId, ancestor: ObjectId) -> bool:
    """Whether one snapshot descends from another, by what is known here and there."""
    there = KnownTree(view, (), repository.directory.crypt)
    seen: set[ObjectId] = set()
    stack = [ident]
    while stack:
        one = stack.pop()
        if one == ancestor:
            return True
        if one not in seen:
            seen.add(one)
            stack += there.snapshot(one).parents if one in view.listings else _recorded(repository, one)
    return False


def _recorded(repository: OpenRepository, ident: ObjectId) -> Sequence[ObjectId]:
    """Its parents, listed or not; none where nothing is known of it."""
    try:
        return (*repository.store.snapshot(ident).parents, *listed.parents(repository, ident))
    except (CorruptError, UnknownNameError):
        return ()


class _Reached:
    """What new snapshots reach, and what of it has to be sent. Close it."""

    def __init__(
        self, repository: OpenRepository, remote: Remote, new: Sequence[ObjectId], without: Set[bytes]
    ) -> None:
        self._without = without
        self._repository = repository
        self._remote = remote
        self._new = new
        self._store = repository.store.without_readahead()
        self._walker = TreeWalker(self._store, repository.index)
        self._below: dict[ObjectId, tuple[list[ObjectId], bytes]] = {}
        for _, ident, children in walk(self._walker, new, set()):
            self._below[ident] = ([child for _, child in children.objects], children.chunks)
        self._packs: dict[ObjectId, frozenset[int]] = {}
        self.learn()

    def close(self) -> None:
        """Let go of the packs here."""
        self._store.close()

    def learn(self) -> None:
        """Know where the chunks of the nearest snapshots there are: most of the new ones' are the same."""
        view = self._remote.log.view
        self._packs.clear()
        parents = {p for one in self._store.snapshots(self._new) for p in one.parents if p in view.listings}
        packs = {pack for parent in parents for pack in view.listings[parent].pack_ids()}
        indexes.load(self._remote.bucket, self._remote.far, packs - self._without)

    def send(self, progress: Callable[[str, int, int], None]) -> int:
        """Send what the store lacks. How many packs that took."""
        self._forget_doubtful()
        missing = {OBJECTS: self._missing(OBJECTS, list(self._below)), CHUNKS: self._missing_chunks()}
        total = self._bytes(missing)
        done = 0

        def sent(size: int) -> None:
            nonlocal done
            done += size
            progress("push", done, max(total, done))

        progress("push", 0, total)
        with Sender(self._remote.bucket, self._remote.far, self._remote.store, sent) as sender:
            for table in (CHUNKS, OBJECTS):
                self._send_frames(sender, table, missing[table])
            sender.finish()
            return len(sender.packs)

    def _forget_doubtful(self) -> None:
        """Packs of the store that nothing listed there needs may be gone, or about to go: those are not counted on."""
        reached = self._remote.log.view.packs()
        doubtful = [p.pack for p in self._remote.far.packs() if p.pack not in reached]
        gone = going(self._remote) if doubtful else set()
        if any(pack in gone or not indexes.is_there(self._remote.bucket, pack) for pack in doubtful):
            self._remote.far.forget_all()
            self.learn()

    def _missing(self, table: bytes, ids: Sequence[bytes]) -> list[bytes]:
        rows = self._remote.far.rows(table, ids)
        return [ident for ident, row in zip(ids, rows, strict=True) if row is None]

    def _missing_chunks(self) -> list[bytes]:
        named = b"".join(chunks for _, chunks in self._below.values())
        missing = self._missing(CHUNKS, list(dict.fromkeys(split(named))))
        return self._missing(CHUNKS, list(split(self._walker.with_bases(b"".join(missing)))))

    def _bytes(self, missing: Mapping[bytes, Sequence[bytes]]) -> int:
        total = 0
        for table, ids in missing.items():
            with self._repository.index.read() as view:
                total += sum(Place.decode(row).span for row in view.get_many(table, ids) if row is not None)
        return total

    def _send_frames(self, sender: Sender, table: bytes, ids: Sequence[bytes]) -> None:
        left = dict.fromkeys(ids)

        def use(frames: Sequence[SoundFrame], rows: Sequence[bytes]) -> None:
            for frame in frames:
                if frame.table == table and frame.id in left:
                    sender.add(frame.data, chunk=table == CHUNKS)
                    del left[frame.id]

        for _ in range(_ATTEMPTS):
            source = PackSource(self._repository)
            for number, offsets in self._places(table, list(left)):
                if not source.each(number, offsets, use):
                    raise CorruptError(f"{source.kept[0].pack} is damaged: {source.kept[0].why}")
            if not left:
                return
        raise CorruptError(f"nothing here has the id {next(iter(left)).hex()[:12]}")

    def _places(self, table: bytes, ids: Sequence[bytes]) -> list[tuple[int, list[int]]]:
        with self._repository.index.read() as view:
            rows = view.get_many(table, ids)
        packs: dict[int, list[int]] = {}
        for row in rows:
            if row is not None:
                place = Place.decode(row)
                packs.setdefault(place.pack, []).append(place.offset)
        return [(number, sorted(offsets)) for number, offsets in sorted(packs.items())]

    def listings(self, idents: Iterable[ObjectId], view: View) -> list[Listed]:
        """What the operation says of snapshots, oldest first."""
        found = [self._listed(ident, view) for ident in idents]
        return sorted(found, key=lambda one: (one.created_ns, one.id))

    def _listed(self, ident: ObjectId, view: View) -> Listed:
        there = view.listings.get(ident)
        if there is not None and ident not in self._below:
            packs = b"".join(sorted(there.pack_ids()))
            return Listed(ident, there.created_ns, there.record, packs, tuple(there.packs))
        created_ns = self._store.snapshot(ident).created_ns
        record = self._store.get_object(ident, FrameKind.SNAPSHOT)
        over = tuple(there.packs) if there is not None else ()
        packs = b"".join(sorted(self._remote.far.pack_ids(self._needs(ident))))
        return Listed(ident, created_ns, record, packs, over)

    def _needs(self, ident: ObjectId) -> frozenset[int]:
        """The packs that hold an object and all below it."""
        known = self._packs.get(ident)
        if known is None:
            objects, chunks = self._below[ident]
            needs = set(self._remote.far.packs_of(OBJECTS, [ident]))
            needs |= self._remote.far.packs_of(CHUNKS, list(split(chunks))) if chunks else set()
            known = self._packs[ident] = frozenset(needs.union(*map(self._needs, objects)))
        return known


def _send_working_sets(repository: OpenRepository, remote: Remote, idents: Sequence[ObjectId]) -> None:
    """What a restore of these needed first, where that is known: the next host begins with it."""
    for ident, data in zip(idents, repository.store.sidecars(idents), strict=True):
        if data is not None and len(data) <= working_sets.MAX_BYTES:
            remote.bucket.put(working_set_name(ident), remote.crypt.seal_bytes(data, ident))
