"""What was deployed, and what is known of it: plain records, a JSON file each in `<repo>/deployments/`.

The file is rewritten by rename before what it says is relied on: a supervisor that is killed at any step leaves to the
next one all that it needs, for what runs is in the instances' own records.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

import msgspec

from ijfs.live.model.paths import check_name
from ijfs.live.model.record_file import replace_file
from ijfs.live.model.records import LOOPBACK, InstanceSpec
from ijfs_engine.errors import CorruptError, StorageError, UnknownNameError

StartMode = Literal["cold", "warm", "checkpoint"]
Mode = StartMode | Literal["job"]
Protocol = Literal["http", "tcp"]
Stage = Literal["gone", "disk", "memory", "starting", "running", "parking"]

Resting = Literal["", "room", "asked"]
"""Why a job is parked: it gave way and comes back when there is `room`, or somebody `asked` for it."""

RECORD_VERSION = 1


class NoDeploymentError(UnknownNameError):
    """No deployment of that name."""

    default_hint = "`ijfs deployments` lists them"


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is to be kept.

    `program`: how its instances start (`ports` holds the one port inside). `address`, `port`: where it is reached; 0 is
    chosen once and kept. `start_mode`: `cold` (always begun from its command), `warm` (stays up), `checkpoint` (begun
    once, restored from then on), `job` (job.py: a program without a port). So many seconds after its last request it
    is parked in host memory (`idle_s`; `cold`: ended), then on disk (`disk_s`), and at last there is no snapshot of it
    any more (`ttl_s`); None: never.
    `priority`: of two that do not fit, the higher one runs. `needs`: bytes of each budget (room.py) while it runs.
    `stateless`: each wake from disk is the moment of its first readiness; what it did since is let go.
    `variables`: what of the program's environment was given for it, and not found there.
    `watched`: files and directories whose change makes a snapshot useless. `hidden`: paths that clients must not ask
    for. `verify`: a request whose answer a restored one has to repeat. `drain_s`: how long requests under way get.
    """

    name: str
    program: InstanceSpec
    start_mode: Mode = "checkpoint"
    address: str = LOOPBACK
    port: int = 0
    inside: int
    protocol: Protocol = "http"
    idle_s: float | None = 300.0
    disk_s: float | None = 3600.0
    ttl_s: float | None = None
    priority: int = 0
    needs: dict[str, int] = {}
    replicas: int = 1
    stateless: bool = False
    variables: dict[str, str] = {}
    watched: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    verify: str = ""
    drain_s: float = 30.0


class DeploymentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment on disk. `generation` counts what was deployed under the name; `key` says for what `snapshots`
    (instance → id) may be used (identity.py); `answer` is what `verify` gave when the first was made. `leaving`:
    instances of another version, which are to end: it came up when that broke off, or went when this one was there.
    `resting`: of a job that is parked, why."""

    version: int = RECORD_VERSION
    spec: DeploymentSpec
    generation: int = 1
    key: str = ""
    snapshots: dict[str, str] = {}
    answer: str = ""
    created_ns: int = 0
    last_used_ns: int = 0
    note: str = ""
    leaving: tuple[str, ...] = ()
    resting: Resting = ""

    def instances(self) -> list[str]:
        """What its instances are called: by its name, with a number where there were others before, or are beside."""
        first = self.spec.name if self.generation == 1 else f"{self.spec.name}-v{self.generation}"
        return [first, *(f"{first}-r{number}" for number in range(2, self.spec.replicas + 1))]


class DeploymentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment as callers are shown it. `requests`: under way; `served`: since the supervisor began; `wakes`: how
    often it came up, with the seconds that the last time took; `start_s`: those from its command until it was ready;
    `url`: "" for a job; `phases`: of each step of what its first instance did last, hooks in `total`; `used_s`: seconds
    since the last request."""

    name: str
    state: Stage
    url: str
    address: str
    port: int
    start_mode: Mode
    priority: int
    instances: tuple[str, ...]
    snapshot: str | None = None
    requests: int = 0
    served: int = 0
    wakes: int = 0
    wake_s: float | None = None
    start_s: float | None = None
    phases: dict[str, float] = {}
    used_s: float | None = None
    note: str = ""


def directory_of(repo: str | os.PathLike[str]) -> Path:
    """Where a repository's deployments are kept."""
    return Path(repo).resolve() / "deployments"


def record_path(repo: str | os.PathLike[str], name: str) -> Path:
    """The file of one; BadNameError."""
    return directory_of(repo) / f"{check_name(name)}.json"


def read(path: Path) -> DeploymentRecord:
    """NoDeploymentError, CorruptError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DeploymentRecord)
    except FileNotFoundError:
        raise NoDeploymentError(f"there is no deployment `{path.stem}`") from None
    except msgspec.DecodeError as error:
        raise CorruptError(
            f"the record of the deployment `{path.stem}`, {path}, is damaged: {error}",
            hint="remove the file and deploy it again; its snapshots are in the repository",
        ) from error


def write(repo: str | os.PathLike[str], record: DeploymentRecord) -> None:
    """Replace the record. StorageError."""
    path = record_path(repo, record.spec.name)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError.of(f"cannot make {path.parent}", error) from error
    replace_file(path, msgspec.json.format(msgspec.json.encode(record), indent=1))


def forget(repo: str | os.PathLike[str], name: str) -> None:
    """Remove the record."""
    record_path(repo, name).unlink(missing_ok=True)


def all_of(repo: str | os.PathLike[str]) -> list[DeploymentRecord]:
    """Those that can be read, by name."""
    found = []
    for path in sorted(directory_of(repo).glob("*.json")):
        with contextlib.suppress(NoDeploymentError, CorruptError):
            found.append(read(path))
    return found
