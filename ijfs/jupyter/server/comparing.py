"""What differs between two states of a kernel: its notebook's cells, its files, its variables. Blocking; called by
api.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ijfs.history import comparison
from ijfs.jupyter import variables
from ijfs.jupyter.server import requests
from ijfs.jupyter.server.documents import Document, cells, document_of
from ijfs.live.client import api as client
from ijfs_engine import Repository, Snapshot
from ijfs_engine.errors import IjfsError

Answer = dict[str, Any]

LIVE = "live"
"""What names a kernel as it is now."""
NO_FILES = frozenset({b"images", b"notebook.ipynb", b"inodes", b"packages"})
"""What is at a snapshot's top beside its program's files."""
MOST_FILES = 1000
"""Paths that a comparison names."""


def compared(repo: Path, request: requests.Compare, instance: str) -> Answer:
    """What differs, in the parts that are asked for. `instance`: what `live` means."""
    parts = request.parts.split(",")
    with Repository.open(repo) as repository:
        old = repository.snapshot(repository.resolve(request.old))
        new = None if request.new == LIVE else repository.snapshot(repository.resolve(request.new))
        answer: Answer = {"old": {"snapshot": old.id.hex()}, "new": {"snapshot": new.id.hex() if new else None}}
        if "cells" in parts:
            now = document_of(repository.reader(), new) if new else _on_disk(client.describe(repo, instance).notebook)
            answer["cells"] = cells(document_of(repository.reader(), old), now)
        if "files" in parts:
            answer |= _files(repository, old, new) if new else {"files": [], "files_cut": False}
    if "variables" in parts:
        answer |= _variables(repo, old, new, instance)
    return answer


def _on_disk(notebook: str) -> Document | None:
    try:
        return dict(json.loads(Path(notebook).read_bytes()))
    except (OSError, ValueError):
        return None


def _files(repository: Repository, old: Snapshot, new: Snapshot) -> Answer:
    changes = comparison.files(repository.reader(), old.root, new.root, skip=NO_FILES)
    found = list(islice(changes, MOST_FILES + 1))
    return {"files": [asdict(change) for change in found[:MOST_FILES]], "files_cut": len(found) > MOST_FILES}


def _variables(repo: Path, old: Snapshot, new: Snapshot | None, instance: str) -> Answer:
    """Asked from both; where one cannot be asked, why."""
    try:
        after = variables.of_snapshot(repo, new.id.hex()) if new else variables.of_program(repo, instance)
        found = variables.compared(variables.of_snapshot(repo, old.id.hex()), after)
    except IjfsError as error:
        return {"variables": [], "variables_error": str(error)}
    return {"variables": found, "variables_error": None}
