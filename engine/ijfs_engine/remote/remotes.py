"""The remotes of a repository: what `Repository.remotes` is. Names, and the verbs that go over the network.

A remote is opened for one verb and closed after it. What is read of remotes by the way (a restore, a mount) goes
through `elsewhere`, which the repository's store is given.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

from ijfs_engine.errors import CorruptError, IjfsError, UnknownNameError
from ijfs_engine.format.records import ObjectId, Snapshot
from ijfs_engine.remote.stored_names import RemoteName, RemoteNames
from ijfs_engine.storage.open_repository import OpenRepository

if TYPE_CHECKING:
    from ijfs_engine.remote.check import CheckReport
    from ijfs_engine.remote.elsewhere import RemoteElsewhere
    from ijfs_engine.remote.fetch import FetchReport
    from ijfs_engine.remote.known import KnownTree
    from ijfs_engine.remote.operation import Operation, OperationId
    from ijfs_engine.remote.pull import PullReport
    from ijfs_engine.remote.push import PushReport
    from ijfs_engine.remote.remote import Remote
    from ijfs_engine.remote.restore_operation import RestoreReport
    from ijfs_engine.remote.sweep import SweepReport
    from ijfs_engine.remote.undo import UndoReport
    from ijfs_engine.remote.usage import RemoteUsage
    from ijfs_engine.storage.signatures import Signature
    from ijfs_engine.util.progress import Progress

CACHE_LIMIT: Final = 20 << 30
"""Bytes of what was read from remotes that stay on the disk, unless $IJFS_REMOTE_CACHE says otherwise."""


class Remotes:
    """Safe to use from several threads; a forked child opens its own repository."""

    def __init__(self, repository: OpenRepository) -> None:
        self._repository = repository
        self._directory: Path = repository.directory.path / "remotes"
        self._names = RemoteNames(self._directory)
        self._lock = Lock()
        self._elsewhere: RemoteElsewhere | None = None

    # --- Names

    def all(self) -> list[RemoteName]:
        """Every remote."""
        return list(self._names.all().values())

    def add(self, name: str, url: str) -> RemoteName:
        """Name a place in an object store; it is not looked at yet. IjfsError."""
        self._repository.directory.check_writable()
        return self._names.add(name, url)

    def remove(self, name: str) -> RemoteName:
        """Forget a remote; what is in its store stays there. UnknownNameError."""
        return self._names.remove(name)

    def known(self, name: str) -> KnownTree:
        """What the last look at a remote found; nothing is asked over the network. UnknownNameError."""
        from ijfs_engine.remote.known import KnownTree
        from ijfs_engine.remote.view import EMPTY

        found = self._names.get(name)
        elsewhere = self.elsewhere()
        return elsewhere.tree(found) if elsewhere is not None and found.store else KnownTree(EMPTY, ())

    def resolve(self, spec: str) -> ObjectId | None:
        """A snapshot of a remote, from `REMOTE/NAME`; None where no remote is called so. UnknownNameError."""
        name, slash, rest = spec.partition("/")
        if not slash or name not in self._names.all():
            return None
        try:
            return self.known(name).resolve(rest or "latest")
        except UnknownNameError as error:
            raise UnknownNameError(str(error), hint=f"`ijfs fetch {name}` looks what is new there") from error

    def snapshot(self, ident: ObjectId) -> Snapshot | None:
        """The record of a snapshot that a remote's tree lists, as far as is known here."""
        elsewhere = self.elsewhere()
        return elsewhere.snapshot(ident) if elsewhere is not None else None

    def lists(self, spec: str) -> bool:
        """Whether a remote's tree lists the snapshot of this whole id, in hex."""
        try:
            return self.snapshot(bytes.fromhex(spec)) is not None
        except (ValueError, CorruptError):
            return False

    def signatures(self, ident: ObjectId) -> list[Signature]:
        """What the remote that lists a snapshot has of signatures, true or not."""
        elsewhere = self.elsewhere()
        return elsewhere.signatures(ident) if elsewhere is not None else []

    def working_set(self, ident: ObjectId) -> bytes | None:
        """What a restore of a remote's snapshot needed first, where the remote has it."""
        elsewhere = self.elsewhere()
        return elsewhere.working_set(ident) if elsewhere is not None else None

    # --- What is read by the way

    def elsewhere(self) -> RemoteElsewhere | None:
        """What the remotes have; None where there is none, or where what is read of them could not be kept."""
        with self._lock:
            if self._elsewhere is None:
                if self._repository.directory.read_only_reason is not None or not self._names.path.exists():
                    return None
                from ijfs_engine.remote.elsewhere import find_elsewhere

                self._elsewhere = find_elsewhere(
                    self._directory.parent, _cache_limit(), self._repository.directory.crypt
                )
            return self._elsewhere

    def close(self) -> None:
        """Let go of everything; safe to call twice."""
        with self._lock:
            found, self._elsewhere = self._elsewhere, None
        if found is not None:
            found.close()

    # --- Over the network

    def push(
        self,
        name: str,
        refs: Mapping[str, ObjectId],
        *,
        also: Sequence[ObjectId] = (),
        progress: Progress | None = None,
    ) -> PushReport:
        """As `push.push` says."""
        from ijfs_engine.remote.push import push

        self._repository.directory.check_writable()
        with self._opened(name) as remote:
            return push(self._repository, remote, refs, also=also, progress=progress)

    def fetch(self, name: str) -> FetchReport:
        """As `fetch.fetch` says."""
        from ijfs_engine.remote.fetch import fetch

        self._repository.directory.check_writable()
        with self._opened(name) as remote:
            return fetch(remote)

    def pull(self, name: str, wanted: Sequence[str] = (), *, progress: Progress | None = None) -> PullReport:
        """Fetch, then have branches and tags of those names (all, where none is named) here, whole. UnknownNameError,
        and as `pull.pull` says."""
        from ijfs_engine.remote.pull import Source, pull
        from ijfs_engine.remote.signed import bring_signatures

        self.fetch(name)
        elsewhere = self.elsewhere()
        assert elsewhere is not None
        tree = self.known(name)
        refs = {ref: tree.refs[ref] for ref in _chosen(tree, wanted)} if wanted else dict(tree.refs)
        bases = elsewhere.far(self._names.get(name)).bases
        report = pull(self._repository, Source(self._repository.store, tree, name, bases), refs, progress)
        with self._opened(name) as remote:
            bring_signatures(self._repository.directory, remote, report.snapshots)
        return report

    def gc(self, name: str, *, grace_s: float | None = None, dry_run: bool = False) -> SweepReport:
        """As `sweep.sweep` says."""
        from ijfs_engine.remote.sweep import GRACE_S, sweep

        with self._opened(name) as remote:
            return sweep(remote, grace_s=GRACE_S if grace_s is None else grace_s, dry_run=dry_run)

    def fsck(
        self, name: str, *, repair: bool = False, data: bool = True, progress: Progress | None = None
    ) -> CheckReport:
        """As `check.check` says; with `repair`, what is whole here is sent anew where it is harmed there."""
        from ijfs_engine.remote.check import check, mend

        with self._opened(name) as remote:
            report = check(remote, data=data, progress=progress)
            return mend(self._repository, remote, report, progress) if repair and report.harm else report

    def du(self, name: str) -> RemoteUsage:
        """As `usage.usage` says."""
        from ijfs_engine.remote.usage import usage

        with self._opened(name) as remote:
            return usage(remote)

    def remove_keys(self, name: str, keys: list[str]) -> None:
        """Take ways to open an encrypted tree out of its store. RemoteError."""
        from ijfs_engine.remote.keys import remove_keys

        with self._opened(name) as remote:
            remove_keys(remote.bucket, keys)

    def claim(self, name: str, ident: ObjectId, place: str) -> str:
        """As `moves.claim` says."""
        from ijfs_engine.remote.moves import claim

        with self._opened(name) as remote:
            return claim(remote, ident, place)

    def operations(self, name: str, most: int) -> list[tuple[OperationId, Operation]]:
        """The newest operations of a remote's tree, newest first. CorruptError, RemoteError."""
        with self._opened(name) as remote:
            remote.find_tree()
            remote.log.refresh()
            remote.remember()
            return remote.log.history(most)

    def undo(self, name: str, operation: str | None = None) -> UndoReport:
        """As `undo.undo` says: of the newest operation, or of the one whose id begins so."""
        from ijfs_engine.remote.undo import undo

        with self._opened(name) as remote:
            return undo(remote, operation)

    def restore_operation(self, name: str, operation: str) -> RestoreReport:
        """As `restore_operation.restore_operation` says."""
        from ijfs_engine.remote.restore_operation import restore_operation

        with self._opened(name) as remote:
            return restore_operation(remote, operation)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Remote]:
        from ijfs_engine.remote.bucket import Bucket
        from ijfs_engine.remote.remote import Remote

        found = self._names.get(name)
        bucket = Bucket.open(found.url)
        with contextlib.closing(Remote(self._directory, found, bucket, self._repository.directory.crypt)) as remote:
            yield remote


def _cache_limit() -> int:
    """What the setting says: `500M`, `20G`, `1T`. IjfsError."""
    value = os.environ.get("IJFS_REMOTE_CACHE") or ""
    if not value:
        return CACHE_LIMIT
    size = re.fullmatch(r"(\d+)([KMGT])", value)
    if size is None:
        raise IjfsError(f"IJFS_REMOTE_CACHE is {value!r}, no size like 500M or 20G")
    return int(size[1]) << 10 * (" KMGT".index(size[2]))


def _chosen(tree: KnownTree, wanted: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in wanted:
        fits = [ref for ref in (f"branch/{name}", f"tag/{name}", name) if ref in tree.refs]
        if not fits:
            raise UnknownNameError(f"there is no branch or tag '{name}' there", hint="`ijfs remote` lists what is")
        found.append(fits[0])
    return found
