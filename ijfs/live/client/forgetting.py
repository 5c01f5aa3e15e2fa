"""Forgets programs that have ended and left nothing that would be missed: `ijfs stop --rm --ended`, and by itself what
notebooks left a week ago (ijfs/jupyter/provisioner.py)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ijfs.live.client.ended import refuse_if_missed
from ijfs.live.client.instances import list_instances, remove
from ijfs.live.client.record import record_of
from ijfs.live.errors import UnsavedFilesError
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.records import InstanceInfo
from ijfs_engine.errors import IjfsError

NOTEBOOKS_KEPT_S = 7 * 24 * 3600.0
"""How long the ended kernel of a notebook is listed: its log, and the ports that its front end knows."""


class Forgotten(NamedTuple):
    """Which were forgotten, and which stay, because of what is in no snapshot: files, or a save that failed."""

    names: list[str]
    kept: dict[str, str]


def forget_ended(repo: Path) -> Forgotten:
    """Forget all programs that have ended, but for those that left something."""
    return _forgotten(repo, _ended(repo))


def forget_notebooks(repo: Path) -> Forgotten:
    """Forget what front ends started for themselves and what ended a week ago, but for what left something."""
    before = time.time() - NOTEBOOKS_KEPT_S
    ended = (info for info in _ended(repo) if info.kind == "kernel")
    return _forgotten(repo, (info for info in ended if _is_of_a_notebook(repo, info.name, before)))


def missed(repo: Path, name: str) -> str | None:
    """What would be missed of a program that has ended, as a sentence; None where nothing would, or nobody can tell."""
    try:
        refuse_if_missed(InstancePaths.of(repo, name))
    except UnsavedFilesError as error:
        return str(error)
    except IjfsError:
        pass
    return None


def goes_with_replace(repo: Path, name: str) -> str | None:
    """What is said where a new program takes the name of one that has ended; None where nothing is lost."""
    what = missed(repo, name)
    return f"{what}; that goes now, as `--replace` says" if what is not None else None


def _ended(repo: Path) -> Iterator[InstanceInfo]:
    """Those that have ended for good: what is parked is to come back."""
    return (info for info in list_instances(repo) if info.status == "exited" and not info.parked_on_disk)


def _is_of_a_notebook(repo: Path, name: str, before: float) -> bool:
    paths = InstancePaths.of(repo, name)
    with contextlib.suppress(IjfsError, OSError):  # gone by now, or just being written
        return record_of(paths).spec.front_end and paths.record.stat().st_mtime < before
    return False


def _forgotten(repo: Path, ended: Iterable[InstanceInfo]) -> Forgotten:
    done = Forgotten([], {})
    for info in ended:
        try:
            refuse_if_missed(InstancePaths.of(repo, info.name))
            if info.save_error:
                done.kept[info.name] = f"its last save was not stored: {info.save_error}"
                continue
            remove(repo, info.name)
            done.names.append(info.name)
        except UnsavedFilesError as error:
            done.kept[info.name] = str(error)
        except IjfsError:  # it runs again, or somebody else forgot it
            continue
    return done
