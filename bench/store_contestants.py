"""The tools that the store benchmark compares, each behind the same four questions. Called by store.py.

Every one stores each snapshot by a command of its own, as a person would, except `tar | zstd`, which has no other way
to find what snapshots share than to see them all in one stream.
"""

from __future__ import annotations

import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import ijfs
import ijfs_engine
from bench.common import Command, program_version
from bench.store_tree import Snapshot


class Contestant(ABC):
    """One tool with one set of options; `home` is its own directory, of which `repository` is what counts as stored."""

    name: str
    version_command: tuple[str, ...]

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repository = home / "repository"

    def version(self) -> str | None:
        """What it says of its version; None where it is not installed."""
        return program_version(self.version_command)

    def prepare(self) -> list[Command]:
        """Commands that make an empty repository; not measured."""
        self.repository.mkdir(parents=True)
        return []

    @abstractmethod
    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        """Commands that store these snapshots, parents first."""

    @abstractmethod
    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        """The command that writes one snapshot's images into the empty directory `target`."""


class Copy(Contestant):
    """`cp -a`: what storing nothing cleverly costs."""

    name = "cp"
    version_command = ("cp", "--version")

    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        return [self._copy(str(one.images), self.repository / one.name) for one in snapshots]

    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        return self._copy(f"{self.repository / snapshot.name}/.", target)

    def _copy(self, source: str, target: Path) -> Command:
        # --reflink=never: on btrfs and xfs cp would share blocks and copy nothing.
        return Command(("cp", "-a", "--reflink=never", source, str(target)))


class Ijfs(Contestant):
    """This project, each import with the snapshot that it really came from as its parent."""

    name = "ijfs"
    program = str(Path(sys.executable).parent / "ijfs")
    version_command = (program, "--version")
    parents = True

    def prepare(self) -> list[Command]:
        self.home.mkdir(parents=True)
        return [self._compile(), self._command("init", str(self.repository))]

    def _compile(self) -> Command:
        """An installed program has its modules compiled, as its peers here have; a checkout that was edited has not."""
        return Command((sys.executable, "-m", "compileall", "-q", *map(str, [*ijfs.__path__, *ijfs_engine.__path__])))

    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        return [self._import(one) for one in snapshots]

    def _import(self, snapshot: Snapshot) -> Command:
        parent = ("--parent", snapshot.parent) if self.parents and snapshot.parent else ()
        return self._command("import", str(snapshot.images), "--branch", snapshot.name, *parent)

    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        return self._command("export", f"{snapshot.name}:images", str(target))

    def verbs(self) -> dict[str, Command]:
        """Work on the whole repository, to be measured beside."""
        return {verb: self._command(verb) for verb in ("du", "gc", "fsck")}

    def _command(self, *argv: str) -> Command:
        return Command((self.program, "-q", "-r", str(self.repository), *argv))


class IjfsNoParent(Ijfs):
    """This project without a hint: every snapshot comes as a stranger's."""

    name = "ijfs, no parent named"
    parents = False


class Borg(Contestant):
    """borg with its default chunker, not encrypted, compressed with zstd,1 as ijfs does."""

    name = "borg, zstd,1"
    version_command = ("borg", "--version")
    options: tuple[str, ...] = ("--compression", "zstd,1")

    def prepare(self) -> list[Command]:
        self.home.mkdir(parents=True)
        return [self._command("init", "--encryption", "none", str(self.repository))]

    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        return [self._create(one) for one in snapshots]

    def _create(self, snapshot: Snapshot) -> Command:
        return self._command("create", *self.options, f"{self.repository}::{snapshot.name}", ".", cwd=snapshot.images)

    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        return self._command("extract", f"{self.repository}::{snapshot.name}", cwd=target)

    def _command(self, *argv: str, cwd: Path | None = None) -> Command:
        quiet = {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_BASE_DIR": str(self.home / "base")}
        return Command(("borg", *argv), cwd, quiet)


class BorgPlain(Borg):
    """borg as it comes: default chunker, lz4."""

    name = "borg, as it comes (lz4)"
    options = ()


class BorgTuned(Borg):
    """borg with chunks as small as ours (16 KiB to 256 KiB, 64 KiB on average)."""

    name = "borg, zstd,1, tuned chunker"
    options = ("--compression", "zstd,1", "--chunker-params", "buzhash,14,18,16,4095")


class Restic(Contestant):
    """restic; it always encrypts."""

    name = "restic"
    version_command = ("restic", "version")

    def prepare(self) -> list[Command]:
        self.home.mkdir(parents=True)
        return [self._command("init")]

    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        return [self._command("backup", "--tag", one.name, ".", cwd=one.images) for one in snapshots]

    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        return self._command("restore", "latest", "--tag", snapshot.name, "--target", str(target))

    def _command(self, *argv: str, cwd: Path | None = None) -> Command:
        env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self.home / "cache")}
        return Command(("restic", "--quiet", "--repo", str(self.repository), *argv), cwd, env)


class Casync(Contestant):
    """casync with its default chunk sizes."""

    name = "casync"
    version_command = ("casync", "--version")

    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        return [self._command("make", self._index(one), str(one.images)) for one in snapshots]

    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        return self._command("extract", self._index(snapshot), str(target))

    def _index(self, snapshot: Snapshot) -> str:
        return str(self.repository / f"{snapshot.name}.caidx")

    def _command(self, verb: str, *argv: str) -> Command:
        return Command(("casync", verb, f"--store={self.repository / 'default.castr'}", *argv))


class TarZstd(Contestant):
    """One archive of all of them, compressed over a window of 2 GiB: small, and no random access."""

    name = "tar, zstd --long=31"
    version_command = ("zstd", "--version")

    def store(self, snapshots: Sequence[Snapshot]) -> list[Command]:
        # The tar is cut off before zstd has ended when zstd fails; pipefail says so.
        names = " ".join(f"{one.name}/images" for one in snapshots)
        pipe = f"set -o pipefail; tar -c {names} | zstd -q --long=31 -T0 -o '{self._archive}'"
        return [Command(("bash", "-c", pipe), snapshots[0].images.parents[1])]

    def restore(self, snapshot: Snapshot, target: Path) -> Command:
        member = f"{snapshot.name}/images"
        pipe = f"set -o pipefail; zstd -dcq --long=31 '{self._archive}' | tar -x --strip-components=2 {member}"
        return Command(("bash", "-c", pipe), target)

    @property
    def _archive(self) -> Path:
        return self.repository / "tree.tar.zst"


ALL: tuple[type[Contestant], ...] = (
    Copy,
    Ijfs,
    IjfsNoParent,
    BorgPlain,
    Borg,
    BorgTuned,
    Restic,
    Casync,
    TarZstd,
)


def choose(only: Sequence[str], work: Path) -> list[Contestant]:
    """Those whose name begins with one of `only` (all, where it is empty), each with a directory of its own."""
    kinds = [kind for kind in ALL if not only or any(kind.name.startswith(word) for word in only)]
    return [kind(work / f"{at}-{kind.__name__.lower()}") for at, kind in enumerate(kinds)]


def remove(contestant: Contestant) -> None:
    """Take its directory away."""
    shutil.rmtree(contestant.home, ignore_errors=True)
