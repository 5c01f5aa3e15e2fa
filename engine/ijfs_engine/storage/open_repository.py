"""The parts of an open repository: what the verbs of maintenance, history and the snapshot writer work on.

`Repository` (repository.py) is this with the public verbs; modules below it take an `OpenRepository`, so that none of
them needs the facade that calls it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from ijfs_engine.storage.directory import RepositoryDirectory
from ijfs_engine.storage.index import Index, Update, View
from ijfs_engine.storage.journal import Journal, Transaction
from ijfs_engine.storage.object_store import Store
from ijfs_engine.storage.refs import Refs

if TYPE_CHECKING:
    from ijfs_engine.storage.session import Session


class OpenRepository:
    """One repository's paths, index, journal, packs and refs. Safe to use from several threads."""

    def __init__(self, directory: RepositoryDirectory, index: Index) -> None:
        """Takes over the index: `close` closes it."""
        self.directory = directory
        self.index = index
        self.journal = open_journal(directory)
        self.store = Store(directory, index)
        self.refs = Refs(index, self.journal)
        self._closed = False

    def session(self, *, lost: Set[int] | None = None) -> Session:
        """The right to add chunks and objects and to commit one snapshot. StorageError. `lost` is `Session`'s."""
        from ijfs_engine.storage.session import Session  # most commands only read

        self.directory.check_writable()
        return Session(self.directory, self.index, self.journal, lost=lost)

    def forget_removed(self) -> None:
        """Let go of packs that gc has removed, so that their space is free. For who keeps a repository open."""
        self.store.forget_removed()

    def close(self) -> None:
        """Let go of every file; safe to call twice."""
        if not self._closed:
            self._closed = True
            self.store.close()
            self.index.close()


def open_journal(directory: RepositoryDirectory) -> Journal:
    """The journal, and how its tail is taken in: by what is loaded where there is one, which is seldom."""

    def take_in(update: Update, transactions: Sequence[Transaction]) -> None:
        from ijfs_engine.storage import journal_tail

        journal_tail.take_in(update, directory.packs, transactions, directory.crypt)

    def says_the_same(view: View, transactions: Sequence[Transaction]) -> bool:
        from ijfs_engine.storage import journal_tail

        return journal_tail.says_the_same(view, transactions)

    def relog(update: Update, transactions: Sequence[Transaction]) -> None:
        from ijfs_engine.storage import journal_tail

        journal_tail.relog(update, transactions)

    return Journal(directory.journal, directory.id, directory.crypt, take_in, says_the_same, relog)
