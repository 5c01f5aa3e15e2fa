"""Which repository a kernel's snapshots go to. Called by provisioner.py; the command line follows the same rule."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_data_path

from ijfs import settings
from ijfs_engine.errors import NoRepositoryError


def choose_repository(configured: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The kernel spec's repository, else IJFS_REPO, else the user's setting, else the user's XDG data directory; `~` is
    expanded."""
    chosen = configured or environment.get("IJFS_REPO") or settings.value("repository")
    return Path(chosen).expanduser().absolute() if chosen else user_data_path("ijfs", appauthor=False)


def ensure_repository(path: Path) -> None:
    """Open it once to see that it is sound; make it where there is nothing yet.

    A person who picks a kernel from a list has no place to type `ijfs init`. A directory that holds anything else is
    left alone (whatever `Repository.init` or `Repository.open` says about it is raised).
    """
    from ijfs_engine import Repository  # loads lmdb and the codecs: not before a kernel is started

    try:
        Repository.open(path).close()
    except NoRepositoryError:
        Repository.init(path).close()
