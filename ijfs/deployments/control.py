"""The wire between a supervisor and who commands it: one JSON object a line over a unix socket in the repository.

A request is one of the structs here; its answers are any number of `{"said": …}`, then `{"ok": …}` (a list of
DeploymentInfo) or `{"error": …}` (errors.error_fields).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from ijfs.deployments.records import DeploymentInfo, DeploymentSpec, Stage, directory_of


class Deploy(msgspec.Struct, frozen=True, tag_field="verb", tag="deploy"):
    """Keep a server, under a name that is free or, with `replace`, in place of the one that has it. Answered when it is
    ready; without `start` at once."""

    spec: DeploymentSpec
    replace: bool = False
    start: bool = True


class List(msgspec.Struct, frozen=True, tag_field="verb", tag="list"):
    """All deployments."""


class Park(msgspec.Struct, frozen=True, tag_field="verb", tag="park"):
    """Let one rest, in `memory` or on `disk`."""

    name: str
    depth: Stage = "memory"


class Wake(msgspec.Struct, frozen=True, tag_field="verb", tag="wake"):
    """Bring one up without a request."""

    name: str


class Undeploy(msgspec.Struct, frozen=True, tag_field="verb", tag="undeploy"):
    """End one and forget it, with its snapshots."""

    name: str


Request = Deploy | List | Park | Wake | Undeploy


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from the supervisor."""

    ok: tuple[DeploymentInfo, ...] | None = None
    error: dict[str, Any] | None = None


def socket_path(repo: str | os.PathLike[str]) -> Path:
    """Where a supervisor listens."""
    return directory_of(repo) / "supervisor.sock"


def lock_path(repo: str | os.PathLike[str]) -> Path:
    """What a supervisor holds (flock) for as long as it lives."""
    return directory_of(repo) / "supervisor.lock"


def log_path(repo: str | os.PathLike[str]) -> Path:
    """What a supervisor that was started by a command writes."""
    return directory_of(repo) / "supervisor.log"
