"""What happens in a repository, as it happens. docs/sdk.md shows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ijfs.jupyter.repository import choose_repository
from ijfs.live.client.watch import RepositoryEvent, RepositoryWatch


@contextmanager
def events(repository: str | os.PathLike[str] | None = None) -> Iterator[RepositoryWatch]:
    """A block in which everything that happens in a repository is heard: iterate over what it gives. `stop()` of that,
    from any thread, ends the iteration. NoRepositoryError.

        with ijfs.events() as happening:
            for event in happening:
                print(event.kind, event.instance, event.snapshot, event.text)
    """
    with RepositoryWatch(choose_repository(os.fspath(repository) if repository is not None else None)) as watch:
        yield watch


__all__ = ["RepositoryEvent", "events"]
