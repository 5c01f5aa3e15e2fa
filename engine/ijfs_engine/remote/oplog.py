"""The operations in an object store: what its tree is now, and one more change of it. No host waits for another.

A head is an operation that is no other's parent. Who adds an operation puts, in this order, its manifest (if it has
one), itself, its head, and takes away the heads that it follows: a host that dies in between leaves a head too many,
whose operation is in the history of the other, or an operation without a head, which never happened.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ijfs_engine.errors import ConflictError, CorruptError
from ijfs_engine.format.crypt import PLAIN, Crypt
from ijfs_engine.remote.bucket import Bucket, MissingObjectError, RemoteError
from ijfs_engine.remote.operation import Change, Operation, OperationId, decode_operation, encode_operation
from ijfs_engine.remote.view import EMPTY, View, applied, decode_view, encode_view, merged
from ijfs_engine.util.pipeline import thread_pool

MANIFEST_EVERY: Final = 32
"""Operations until one has a manifest. A cold host reads as many at once; a manifest of 1,000 snapshots is 200 KB."""
_AT_ONCE: Final = 16
MERGE: Final = "merge"
"""Why two heads became one: nobody's wish."""


class OpLog:
    """The operations of one store, as far as this host has seen them."""

    def __init__(
        self, bucket: Bucket, view: View = EMPTY, heads: Sequence[OperationId] = (), crypt: Crypt = PLAIN
    ) -> None:
        """With what was known before."""
        self._crypt = crypt
        self._bucket = bucket
        self.view = view
        self.heads = tuple(heads)
        self._operations: dict[OperationId, Operation] = {}

    def refresh(self) -> View:
        """Learn what other hosts did; one request where that is nothing. CorruptError, RemoteError."""
        found = sorted(_id(one.path) for one in self._bucket.list("heads"))
        if tuple(found) == self.heads:
            return self.view
        for head in found:
            if head not in self.view.history:
                self._learn(head)
        self.heads = tuple(self._uncovered(found))
        return self.view

    def _uncovered(self, heads: Sequence[OperationId]) -> list[OperationId]:
        """Heads that no other head follows: one that does was left by a host which died."""
        if len(heads) == 1:
            return list(heads)
        followed = {parent for head in heads for parent in self._ancestors(head)}
        return [head for head in heads if head not in followed]

    def _ancestors(self, head: OperationId) -> Iterable[OperationId]:
        operation = self._get(head)
        return {*operation.since, *operation.parents}

    def _learn(self, head: OperationId) -> None:
        """Bring the view to one more head: on from what is known, or from the nearest manifest."""
        operation = self._get(head)
        way = [head] if operation.manifest else [*operation.since, head]
        if self.view.history.isdisjoint(way) and not self.view.history.issuperset(operation.parents):
            way = self._from_manifest(way, operation)
        self._apply([one for one in way if one not in self.view.history])

    def _from_manifest(self, way: list[OperationId], operation: Operation) -> list[OperationId]:
        """Learn what the manifest of the first operation of a way says; the way that is left to go."""
        try:
            self.view = merged(self.view, decode_view(self._bucket.get(f"manifests/{way[0].hex()}"), self._crypt))
            return way[1:]
        except (MissingObjectError, CorruptError):
            # It can be made from the operations: it only saves reading them. The first of all has none.
            first, *_ = self._get_many(way)
            return [*self._all_before(operation), way[-1]] if first.parents else way

    def _all_before(self, operation: Operation) -> list[OperationId]:
        """What is not known of an operation's ancestors, parents first."""
        order: list[OperationId] = []
        seen: set[OperationId] = set()
        stack: list[tuple[OperationId, bool]] = [(parent, False) for parent in operation.parents]
        while stack:
            ident, done = stack.pop()
            if done:
                order.append(ident)
            elif ident not in seen and ident not in self.view.history:
                seen.add(ident)
                stack += [(ident, True), *((parent, False) for parent in self._get(ident).parents)]
        return order

    def _apply(self, idents: Sequence[OperationId]) -> None:
        for ident, operation in zip(idents, self._get_many(idents), strict=True):
            self.view = applied(self.view, ident, operation)

    def _get(self, ident: OperationId) -> Operation:
        """One operation, checked against its name. CorruptError, RemoteError."""
        found = self._operations.get(ident)
        if found is None:
            data = self._bucket.get(f"ops/{ident.hex()}")
            found = decode_operation(data, self._crypt)
            if encode_operation(found, self._crypt)[0] != ident:
                raise CorruptError(f"{self._bucket.url}/ops/{ident.hex()} is another operation than its name says")
            self._operations[ident] = found
        return found

    def _get_many(self, idents: Sequence[OperationId]) -> list[Operation]:
        if len(idents) < 2:
            return [self._get(ident) for ident in idents]
        pool = thread_pool(min(_AT_ONCE, len(idents)), "ijfs-ops")
        with pool:
            return list(pool.map(self._get, idents))

    def merge(self) -> None:
        """Make one head of several. Every host that does makes the same operation: it says nothing of who or when."""
        if len(self.heads) < 2:
            return
        heads = tuple(sorted(self.heads))
        at = max(self._get(head).time_ns for head in heads)
        self._add(Operation(heads, at, "", "", MERGE, (), (), manifest=True))

    def add(self, changes: Callable[[View], Sequence[Change]], *, who: str, host: str, why: str) -> OperationId | None:
        """Change the tree as it is now: `changes` says how, or nothing. None where there was nothing to do."""
        self.refresh()
        self.merge()
        wanted = tuple(changes(self.view))
        if not wanted:
            return None
        return self._add(self._next(wanted, who, host, why))

    def _next(self, changes: tuple[Change, ...], who: str, host: str, why: str) -> Operation:
        since: tuple[OperationId, ...] = ()
        for parent in self.heads:
            above = self._get(parent)
            since = (parent,) if above.manifest else (*above.since, parent)
        return Operation(
            self.heads, time.time_ns(), who, host, why, changes, since, manifest=len(since) >= MANIFEST_EVERY
        )

    def _add(self, operation: Operation) -> OperationId:
        ident, data = encode_operation(operation, self._crypt)
        view = applied(self.view, ident, operation)
        if operation.manifest:
            self._bucket.put(f"manifests/{ident.hex()}", encode_view(view, self._crypt))
        if not self._bucket.put_new(f"ops/{ident.hex()}", data):
            there = self._bucket.get(f"ops/{ident.hex()}")
            if encode_operation(decode_operation(there, self._crypt), self._crypt)[0] != ident:
                raise ConflictError(f"{self._bucket.url} has something else in the place of an operation")
        self._bucket.put(f"heads/{ident.hex()}", b"")
        # It has happened now. A head that stays is known by its child.
        with contextlib.suppress(RemoteError):
            self._bucket.delete([f"heads/{parent.hex()}" for parent in operation.parents])
        self._operations[ident] = operation
        self.view, self.heads = view, (ident,)
        return ident

    def operation(self, ident: OperationId) -> Operation:
        """One operation. CorruptError, RemoteError."""
        return self._get(ident)

    def view_after(self, ident: OperationId) -> View:
        """What the tree was when an operation and all before it had happened. CorruptError, RemoteError."""
        past = OpLog(self._bucket, crypt=self._crypt)
        past._operations = self._operations
        past._learn(ident)
        return past.view

    def way_of_heads(self) -> set[OperationId]:
        """The operations from the nearest manifests to the heads: what a cold host reads."""
        return {one for head in self.heads for one in (head, *self._get(head).since)}

    def history(self, most: int) -> list[tuple[OperationId, Operation]]:
        """The newest operations, so many at most, newest first. CorruptError, RemoteError."""
        found: dict[OperationId, Operation] = {}
        edge = list(self.heads)
        while edge and len(found) < most:
            found.update(zip(edge, self._get_many(edge), strict=True))
            edge = list(dict.fromkeys(p for ident in edge for p in found[ident].parents if p not in found))
        return sorted(found.items(), key=lambda one: (one[1].time_ns, one[0]), reverse=True)[:most]


def _id(path: str) -> OperationId:
    """The id that a head's name says. CorruptError."""
    try:
        return bytes.fromhex(path.rsplit("/", 1)[-1])
    except ValueError:
        raise CorruptError(f"there is something in heads/ that is no operation: {path}") from None
