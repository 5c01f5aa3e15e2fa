"""Where an instance's files are under `<repo>/live/<name>/`; the one place that knows these names."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ijfs_engine.errors import IjfsError

# A name becomes a directory, a branch, a host name (63 bytes at most) and a command line argument.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class BadNameError(IjfsError):
    """A name that cannot be an instance's."""

    exit_code = 2
    default_hint = "letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most 63"


def check_name(name: str) -> str:
    """The name itself, or BadNameError."""
    if not _NAME.fullmatch(name) or name in {"latest"}:
        raise BadNameError(f"`{name}` cannot be the name of a program")
    return name


def live_directory(repo: str | os.PathLike[str]) -> Path:
    """The directory that holds all live instances of a repository."""
    return Path(repo).resolve() / "live"


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits into sun_path's 108 bytes, however deep the repository lies."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@dataclass(frozen=True, slots=True)
class InstancePaths:
    """The files of one instance."""

    root: Path

    @classmethod
    def of(cls, repo: str | os.PathLike[str], name: str) -> InstancePaths:
        """The paths of the instance `name` of a repository."""
        return cls(live_directory(repo) / check_name(name))

    @property
    def record(self) -> Path:
        """The InstanceRecord, JSON, rewritten by rename."""
        return self.root / "instance.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by the keeper for as long as it lives."""
        return self.root / "keeper.lock"

    @property
    def socket(self) -> Path:
        """The keeper's control socket, 0600."""
        return self.root / "control.sock"

    @property
    def keeper_log(self) -> Path:
        """The keeper's own log."""
        return self.root / "keeper.log"

    @property
    def earlier_log(self) -> Path:
        """What the program that had this name before wrote to stdout and stderr."""
        return self.root / "earlier.log"

    @property
    def connection_file(self) -> Path:
        """A kernel's connection file for clients outside: relay ports."""
        return self.root / "kernel.json"

    @property
    def adopted(self) -> Path:
        """What of its files was taken home (ijfs.live.adopt.noted)."""
        return self.root / "adopted"

    @property
    def fuse(self) -> Path:
        """Where the keeper's own FUSE mount goes."""
        return self.root / "mnt"

    def sandbox(self, generation: int) -> SandboxPaths:
        """The directories of one sandbox of this instance."""
        return SandboxPaths(self.root / f"box-{generation}")


@dataclass(frozen=True, slots=True)
class OverlayDirectories:
    """The directories of one overlay. `on`: where its layers are, if not in `root`."""

    root: Path
    on: Path | None = None

    @property
    def layers(self) -> Path:
        """What the writable layer and the work directory are in: one filesystem."""
        return self.on or self.root

    @property
    def upper(self) -> Path:
        """The writable layer: every file the program wrote."""
        return self.layers / "upper"

    @property
    def work(self) -> Path:
        """The overlay's work directory."""
        return self.layers / "work"

    @property
    def mountpoint(self) -> Path:
        """Where the keeper's mount namespace has it."""
        return self.root / "root"


@dataclass(frozen=True, slots=True)
class SandboxPaths(OverlayDirectories):
    """The directories of one sandbox; going back in place makes new ones beside the old."""

    @property
    def name(self) -> str:
        """What the instance is called."""
        return self.root.parent.name

    @property
    def repository(self) -> Path:
        """The repository that the instance belongs to."""
        return self.root.parents[2]

    @property
    def image(self) -> Path:
        """The disk of its own that a sandbox may have (sandbox/disk.py)."""
        return self.root / "disk.ext4"

    @property
    def layers(self) -> Path:
        """Where the disk is mounted, in the keeper's mount namespace; without one, the sandbox's directory."""
        return self.root / "layers" if self.image.exists() else self.root

    @property
    def kept_log(self) -> Path:
        """What a program with a disk of its own had written to stdout and stderr when it ended."""
        return self.root / "program.log"

    @property
    def cgroups(self) -> Path:
        """The control groups that were made for it, a directory a line (sandbox/limits.py)."""
        return self.root / "cgroups"

    @property
    def dev(self) -> Path:
        """Where the keeper's mount namespace has the sandbox's /dev."""
        return self.root / "dev"

    @property
    def shm(self) -> Path:
        """Where the keeper's mount namespace has the sandbox's /dev/shm."""
        return self.root / "shm"

    def volume(self, key: str) -> OverlayDirectories:
        """The directories of one more overlay (records.Volume)."""
        return OverlayDirectories(self.root / "volumes" / key, self.layers / "volumes" / key)

    @property
    def criu(self) -> Path:
        """CRIU's working directory: logs, pid file, the pager's socket."""
        return self.root / "criu"

    @property
    def program_log(self) -> Path:
        """What the program writes to stdout and stderr; inside it is LOG_INSIDE."""
        return self.upper / LOG_INSIDE.lstrip("/")


# /run is an empty directory of the overlay: the log rides in each snapshot, and each sibling has its own.
RUN_INSIDE = "/run/ijfs"
LOG_INSIDE = f"{RUN_INSIDE}/program.log"
INIT_INSIDE = f"{RUN_INSIDE}/init"
TERMINAL_INSIDE = f"{RUN_INSIDE}/terminal"
TERMINAL_PORT = 4718
"""Where the terminal of a program is reached inside; terminal_server.c has it, too."""
CONNECTION_FILE_INSIDE = f"{RUN_INSIDE}/kernel.json"
