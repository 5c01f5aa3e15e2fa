"""What differs between two states of a kernel: its notebook's cells, its files, its variables. Blocking; called by
api.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ijfs.history import comparison, unsaved
from ijfs.history.comparison import FileChange
from ijfs.history.notebooks import Document
from ijfs.jupyter import variables
from ijfs.jupyter.server import requests
from ijfs.jupyter.server.documents import cells, document_of
from ijfs.live.client.written import written
from ijfs_engine import Repository, Snapshot
from ijfs_engine.errors import IjfsError

Answer = dict[str, Any]

LIVE = "live"
"""What names a kernel as it is now."""
NO_FILES = frozenset({b"images", b"notebook.ipynb", b"inodes", b"packages"})
"""What is at a snapshot's top beside its program's files."""
MOST_FILES = 1000
"""Paths that a comparison names."""
UNKNOWN_CELLS = "the notebook as it is in the browser is known where it comes with the request: POST it as `document`"


def compared(repo: Path, request: requests.Compare, instance: str) -> Answer:
    """What differs, in the parts that are asked for. `instance`: what `live` means."""
    parts = request.parts.split(",")
    with Repository.open(repo) as repository:
        old = repository.snapshot(repository.resolve(request.old))
        new = None if request.new == LIVE else repository.snapshot(repository.resolve(request.new))
        answer: Answer = {"old": {"snapshot": old.id.hex()}, "new": {"snapshot": new.id.hex() if new else None}}
        if "cells" in parts:
            answer |= _cells(repository, old, new, request.document)
        if "files" in parts:
            answer |= _files(repository, old, new, instance)
    if "variables" in parts:
        answer |= _variables(repo, old, new, instance)
    return answer


def _cells(repository: Repository, old: Snapshot, new: Snapshot | None, now: Document | None) -> Answer:
    """Of a live kernel those that its browser has sent: the file may be minutes behind what is typed and run there."""
    if new is None and now is None:
        return {"cells": [], "cells_error": UNKNOWN_CELLS}
    before = document_of(repository.reader(), old)
    after = now if new is None else document_of(repository.reader(), new)
    return {"cells": cells(before, after), "cells_error": None}


def _files(repository: Repository, old: Snapshot, new: Snapshot | None, instance: str) -> Answer:
    """Why not is said of a live program whose files cannot be had."""
    try:
        found = list(islice(_changes(repository, old, new, instance), MOST_FILES + 1))
    except (IjfsError, OSError) as error:
        return {"files": [], "files_cut": False, "files_error": str(error)}
    named = [asdict(change) for change in found[:MOST_FILES]]
    return {"files": named, "files_cut": len(found) > MOST_FILES, "files_error": None}


def _changes(repository: Repository, old: Snapshot, new: Snapshot | None, instance: str) -> Iterator[FileChange]:
    if new is not None:
        yield from comparison.files(repository.reader(), old.root, new.root, skip=NO_FILES)
        return
    with written(repository.path, instance) as now:
        yield from unsaved.files(repository.reader(), old.root, now)


def _variables(repo: Path, old: Snapshot, new: Snapshot | None, instance: str) -> Answer:
    """Asked from both; where one cannot be asked, why."""
    try:
        after = variables.of_snapshot(repo, new.id.hex()) if new else variables.of_program(repo, instance)
        found = variables.compared(variables.of_snapshot(repo, old.id.hex()), after)
    except IjfsError as error:
        return {"variables": [], "variables_error": str(error)}
    return {"variables": found, "variables_error": None}
