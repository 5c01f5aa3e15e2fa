"""Which snapshots are listed, what their parents are now, and how one is taken out.

`Repository` has each of these as a verb; prune, working sets and the snapshot writer call them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ijfs_engine.errors import CorruptError, IjfsError, LockedError, UnknownNameError
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.storage import names, ordering
from ijfs_engine.storage.index import REFS, REMOVED, SNAPSHOTS, U64, Update, View
from ijfs_engine.storage.journal import Record, SnapshotRemoved
from ijfs_engine.storage.open_repository import OpenRepository
from ijfs_engine.storage.pins import live_pins
from ijfs_engine.storage.refs import NOT_HERE, log_records, move_ref, ref_name, write_logged


def resolve(repository: OpenRepository, spec: str) -> ObjectId:
    """A snapshot's id from a prefix of at least 4 digits, a branch, a tag, `name~2` or `latest`.

    UnknownNameError, AmbiguousNameError (which lists the candidates).
    """
    name, generations = names.parse(spec)
    if name == "latest":
        ident = _latest(repository)
    else:
        with repository.index.read() as view:
            ident = names.named(view, name)
    for done in range(generations):
        parent = nearest(repository, repository.store.snapshot(ident).parents)
        if parent is None:
            from ijfs_engine.util.words import count

            raise UnknownNameError(f"{spec!r} goes back {count(generations, 'generation')}, and {done} are there")
        ident = parent
    return ident


def snapshot(repository: OpenRepository, ident: ObjectId) -> Snapshot:
    """The record of a snapshot that is listed. UnknownNameError, CorruptError."""
    check_listed(repository, [ident])
    return repository.store.snapshot(ident)


def check_listed(repository: OpenRepository, ids: Sequence[ObjectId]) -> None:
    """UnknownNameError for what is no snapshot that is listed."""
    with repository.index.read() as view:
        rows = view.get_many(SNAPSHOTS, ids)
    for ident, row in zip(ids, rows, strict=True):
        if row is None:
            raise UnknownNameError(f"there is no snapshot {ident.hex()[:12]}", hint=NOT_HERE)


def snapshots(repository: OpenRepository, newest: int | None = None) -> list[Snapshot]:
    """All, or so many, newest first and children before their parents, without those whose record cannot be read; fsck
    names these."""
    return [one for one in ordering.newest_first(repository, newest).values() if one is not None]


def _latest(repository: OpenRepository) -> ObjectId:
    with repository.index.read() as view:
        aside = names.set_aside(view)
    for ident in ordering.newest_first(repository, 1 + len(aside)):
        if ident not in aside:
            return ident
    raise UnknownNameError("there is no snapshot yet", hint="`ijfs save` or `ijfs import` makes one")


def parents(repository: OpenRepository, ident: ObjectId) -> list[ObjectId]:
    """The parents of a snapshot as they are listed now: for one that was removed, its own nearest ones."""
    recorded = snapshot(repository, ident).parents
    with repository.index.read() as view:
        found = [names.nearest(view, [parent]) for parent in recorded]
    return list(dict.fromkeys(parent for parent in found if parent is not None))


def parents_as_far_as_known(repository: OpenRepository, ident: ObjectId) -> list[ObjectId]:
    """As `parents`; of a snapshot whose record is damaged, what the log of names says that it was made after."""
    try:
        return parents(repository, ident)
    except CorruptError:
        logged = _Gone.of(repository, [ident]).parents[ident]
    with repository.index.read() as view:
        found = [names.nearest(view, [parent]) for parent in logged]
    return list(dict.fromkeys(parent for parent in found if parent is not None))


def nearest(repository: OpenRepository, candidates: Sequence[ObjectId]) -> ObjectId | None:
    """The first of the candidates that is listed, or the nearest ancestor of one that was removed."""
    with repository.index.read() as view:
        return names.nearest(view, candidates)


def remove(repository: OpenRepository, ids: Sequence[ObjectId]) -> None:
    """Take snapshots out of the tree, all of them or none; gc frees the bytes that no other snapshot has.

    Branches at one move to its nearest parent that is left, or vanish. A tag or a live instance's pin holds one:
    IjfsError, LockedError. Children stay whole.
    """
    gone = _Gone.of(repository, ids)

    def change(update: Update) -> None:
        records: list[Record] = []
        for ident, above in gone.parents.items():
            _check_removable(repository, update, ident)
            update.delete(SNAPSHOTS, ident)
            update.put(REMOVED, ident, names.removed_row(above))
            records.append(SnapshotRemoved(ident, above))
        for key, head, heir in gone.moves(update):
            records.append(move_ref(update, key, head, heir, "rm of the snapshot it was at"))
        log_records(update, repository.journal, records)

    if ids:
        write_logged(repository.index, repository.journal, change)


def heirs(repository: OpenRepository, ids: Sequence[ObjectId]) -> dict[str, ObjectId | None]:
    """Where each branch at one of the snapshots would stand without them; None where it would go."""
    gone = _Gone.of(repository, ids)
    with repository.index.read() as view:
        return {ref_name(key).removeprefix("branch/"): heir for key, _, heir in gone.moves(view)}


def removed(repository: OpenRepository, prefix: str) -> list[ObjectId]:
    """The snapshots that were removed since the last gc and whose id begins with these digits, at least 4."""
    with repository.index.read() as view:
        return names.removed_since_gc(view, prefix)


class _Gone(NamedTuple):
    """What is to be removed: parents of each, and for each branch at one whose record is damaged, where the branch
    stood before, the last time first."""

    parents: dict[ObjectId, tuple[ObjectId, ...]]
    stood: dict[bytes, list[ObjectId]]

    @classmethod
    def of(cls, repository: OpenRepository, ids: Sequence[ObjectId]) -> _Gone:
        """UnknownNameError for what is no snapshot that is listed."""
        gone = cls({}, {})
        for ident in ids:
            try:
                gone.parents[ident] = snapshot(repository, ident).parents
            except CorruptError:
                # rm is how one gets rid of it.
                gone._from_log(repository, ident)
        return gone

    def _from_log(self, repository: OpenRepository, ident: ObjectId) -> None:
        """The save that made a snapshot moved its branch there from the one before, as the log of names has it yet."""
        changes = [one for one in repository.refs.log() if one.name.startswith("branch/")]
        with repository.index.read() as view:
            made = [one.old for one in changes if one.new == ident][-1:]
            self.parents[ident] = tuple(_older(view, made, ident))
            for key, head in view.prefixed(REFS, b"branch/"):
                if head == ident:
                    before = [one.old for one in changes if one.name == ref_name(key)]
                    self.stood[key] = _older(view, before, ident)

    def moves(self, view: View) -> list[tuple[bytes, ObjectId, ObjectId | None]]:
        """The branches at what goes: key, where it is, and where it is to be."""
        return [
            (key, head, names.nearest(view, [*self.parents[head], *self.stood.get(key, ())], self.parents))
            for key, head in list(view.prefixed(REFS, b"branch/"))
            if head in self.parents
        ]


def _older(view: View, candidates: Sequence[ObjectId | None], ident: ObjectId) -> list[ObjectId]:
    """Those that are not known to be younger than a snapshot, and so its children: a branch may have gone back."""
    made = _created(view, ident)
    return [one for one in candidates if one is not None and one != ident and _created(view, one) <= made]


def _created(view: View, ident: ObjectId) -> int:
    row = view.get(SNAPSHOTS, ident)
    return int(U64.unpack(row)[0]) if row is not None else 0


def _check_removable(repository: OpenRepository, update: Update, ident: ObjectId) -> None:
    short = ident.hex()[:12]
    if update.get(SNAPSHOTS, ident) is None:
        raise UnknownNameError(f"there is no snapshot {short}")
    tags = [ref_name(key)[4:] for key, at in update.prefixed(REFS, b"tag/") if at == ident]
    if tags:
        raise IjfsError(f"the snapshot {short} is tagged {', '.join(tags)}", hint=f"`ijfs tag -d {tags[0]}` first")
    owners = [pin.owner for pin in live_pins(repository.directory.pins) if pin.id == ident]
    if owners:
        raise LockedError(f"the snapshot {short} is in use by {', '.join(owners)}", hint="stop it first")
