"""What a request does to a snapshot's names and place: tag, rename, delete, adopt. Blocking; called by api.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ijfs.jupyter.server import requests
from ijfs.jupyter.server.opening import in_repository
from ijfs.live.adopt.plan import Step
from ijfs.live.client import api as client
from ijfs.live.client.adopt import Adoption
from ijfs_engine import ANY, Repository
from ijfs_engine.errors import ConflictError, UnknownNameError

Answer = dict[str, Any]


def tag(repo: Path, request: requests.Tag) -> Answer:
    """ConflictError where another snapshot has the tag."""

    def do(repository: Repository) -> Answer:
        ident = repository.resolve(request.snapshot)
        if repository.refs.tags().get(request.name) != ident:
            expect = ANY if request.force else None
            repository.refs.set_tag(request.name, ident, expect=expect, why="tag")
        return {"snapshot": ident.hex(), "name": request.name}

    return in_repository(repo, do)


def untag(repo: Path, request: requests.Untag) -> Answer:
    """UnknownNameError."""

    def do(repository: Repository) -> Answer:
        at = repository.refs.tags().get(request.name)
        repository.refs.delete_tag(request.name)
        return {"name": request.name, "snapshot": at.hex() if at is not None else None}

    return in_repository(repo, do)


def rename(repo: Path, request: requests.Rename) -> Answer:
    """ConflictError where the name is taken, or a live program saves onto the branch."""

    def do(repository: Repository) -> Answer:
        if not request.branch:
            repository.refs.set_branch(request.name, repository.resolve(request.snapshot), expect=None, why="branch")
            return {"branch": request.name, "name": request.name}
        at = repository.refs.branches().get(request.branch)
        if at is None:
            raise UnknownNameError(f"there is no branch '{request.branch}'")
        _refuse_of_a_live_program(repo, request.branch)
        repository.refs.set_branch(request.name, at, expect=None, why=f"{request.branch} was renamed")
        repository.refs.delete_branch(request.branch, expect=at, why=f"renamed to {request.name}")
        return {"branch": request.branch, "name": request.name}

    return in_repository(repo, do)


def _refuse_of_a_live_program(repo: Path, branch: str) -> None:
    for info in client.list_instances(repo):
        if info.status == "running" and branch in (info.branch, info.name):
            raise ConflictError(
                f"the live program `{info.name}` saves onto the branch '{branch}'", hint="give the snapshot a tag"
            )


def delete(repo: Path, request: requests.Delete) -> Answer:
    """LockedError while a live program stands on one, IjfsError where a tag holds it: nothing is removed then."""

    def do(repository: Repository) -> Answer:
        ids = [repository.resolve(spec) for spec in request.snapshots]
        rest = [s.id for s in repository.snapshots() if s.id not in ids]
        freed = repository.du().total.stored - repository.du(rest).total.stored
        if not request.dry_run:
            repository.remove_many(ids)
        return {"removed": [ident.hex() for ident in ids], "bytes": max(freed, 0), "dry_run": request.dry_run}

    return in_repository(repo, do)


def adopt(repo: Path, request: requests.Adopt) -> Answer:
    """ConflictError where both sides have changed a file and it is not said which counts; nothing is done then."""

    def do(repository: Repository) -> Answer:
        adoption = Adoption(repository, request.snapshot)
        steps = [
            step for step in adoption.compare(request.paths).steps if not (step.conflict and request.choice == "ours")
        ]
        conflicts = [step for step in steps if step.conflict]
        if request.dry_run:
            return {"files": [_step_json(step) for step in steps], "applied": False, "left": []}
        if conflicts and not request.choice:
            raise ConflictError(
                f"both sides have changed {_shown(conflicts[0])}; nothing was done",
                hint="choose which to keep",
            )
        done = list(adoption.take_home(steps))
        left = [{"path": _shown(one.step), "why": one.left} for one in done if one.left]
        return {"files": [_step_json(d.step) for d in done if not d.left], "applied": True, "left": left}

    return in_repository(repo, do)


def _step_json(step: Step) -> Answer:
    sizes = {"old_size": step.old_size, "new_size": step.new_size}
    return {"path": _shown(step), "change": step.change, **sizes, "conflict": bool(step.conflict)}


def _shown(step: Step) -> str:
    return "/" + os.fsdecode(step.path).lstrip("/")
