"""A repository with its snapshots and live programs: the way into the SDK."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ijfs.jupyter.repository import choose_repository, ensure_repository
from ijfs.live.client import api as client
from ijfs.live.client.api import NO_SECRETS
from ijfs.live.client.instances import named
from ijfs.live.model.records import NO_LIMITS, Idle, InstanceSpec, Limits, Network
from ijfs.live.model.sizes import parse_limits
from ijfs.live.uploads.followed import LOCAL, remote_of
from ijfs.sdk import calls
from ijfs.sdk.box import Box, Env
from ijfs.sdk.snapshots import Difference, Snapshot

if TYPE_CHECKING:
    import ijfs_engine
    from ijfs.live.client.api import InstanceInfo, OnEvent

READY_S = 60.0
"""A kernel that imports much at its start, on a busy machine, takes a good part of this."""


class Repository:
    """A directory of snapshots, and the live programs whose snapshots go there. Nothing stays open: an object may be
    kept for as long as one likes, used by any number of threads, and carried over a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Repository({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, create: bool = False) -> Repository:
        """The repository at `path`, or the one the command line takes: $IJFS_REPO, else the user's own.

        NoRepositoryError where there is none, unless `create` makes it; UnknownFormatError, CorruptError.
        """
        where = choose_repository(os.fspath(path) if path is not None else None)
        if create:
            ensure_repository(where)
        found = cls(where)
        with found.engine():
            return found

    @contextmanager
    def engine(self) -> Iterator[ijfs_engine.Repository]:
        """The store itself, for what this class does not offer: gc, fsck, du, prune, refs."""
        from ijfs_engine import Repository as Engine

        with Engine.open(self.path) as repository:
            yield repository

    # -- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self, spec: str = "latest") -> Snapshot:
        """The snapshot that the command line means by these words: a branch, a tag, an id, `name~2`, `latest`.
        UnknownNameError, AmbiguousNameError."""
        with self.engine() as repository:
            return Snapshot(self.path, repository.resolve(spec).hex())

    def snapshots(self, newest: int | None = None) -> list[Snapshot]:
        """All snapshots, or so many, newest first."""
        with self.engine() as repository:
            return [Snapshot(self.path, record.id.hex()) for record in repository.snapshots(newest)]

    def branches(self) -> dict[str, Snapshot]:
        """Every branch and the snapshot it stands at."""
        with self.engine() as repository:
            return {name: Snapshot(self.path, at.hex()) for name, at in repository.refs.branches().items()}

    def tags(self) -> dict[str, Snapshot]:
        """Every tag and its snapshot."""
        with self.engine() as repository:
            return {name: Snapshot(self.path, at.hex()) for name, at in repository.refs.tags().items()}

    def diff(self, old: Snapshot | str, new: Snapshot | str = "latest", *, memory: bool = True) -> Difference:
        """What differs between two snapshots."""
        return self.snapshot(str(new)).diff(old, memory=memory)

    def remote_of(self, storage: str) -> str:
        """The remote that a value of `storage` means; "" for none. UnknownNameError."""
        if storage == LOCAL:
            return ""
        with self.engine() as repository:
            return remote_of(repository, storage)

    # -- live programs --------------------------------------------------------------------------------------------

    def boxes(self, *, ended: bool = False) -> list[Box]:
        """The programs that run, by name; with `ended` those, too, whose files are still there."""
        found = client.list_instances(self.path)
        return [Box(self.path, info.name) for info in found if ended or info.status == "running"]

    def box(self, name: str) -> Box:
        """The live (or ended) program of this name; NoInstanceError."""
        client.describe(self.path, name)
        return Box(self.path, name)

    def start(
        self,
        argv: Sequence[str],
        *,
        name: str | None = None,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        network: Network = "none",
        ports: Sequence[int] = (),
        gpu: bool = False,
        base: str = "",
        ttl: float | None = None,
        memory: str | int | None = None,
        cpu: float | None = None,
        pids: int | None = None,
        timeout: float | None = None,
        on_event: OnEvent | None = None,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        storage: str = LOCAL,
        **more: Any,
    ) -> Box:
        """Start a program in a sandbox of its own. `env` is added to this process's variables; `ports` can be reached
        from outside (`Box.port`); after `ttl` seconds it is ended, and each copy after as many of its own. `memory`
        (bytes, or "4G"), `cpu` (processors) and `pids` (processes and threads) are what it may take, and each copy as
        much again; `limits` says the same at once. `storage`: a remote by name, or `s3`, that its saves go to as well,
        behind its back (docs/remotes.md). `idle`: what becomes of it where nobody uses it. `secrets`: values that it
        can ask for (`ijfs.secret`), and that no snapshot has. `more` are further fields of InstanceSpec. LimitError
        where this machine cannot limit that, UnknownNameError for a remote that there is not."""
        own = InstanceSpec(
            name="",
            argv=tuple(argv),
            env=dict(env or {}),
            cwd=os.path.abspath(cwd or os.getcwd()),
            network=network,
            ports=tuple(ports),
            gpu=gpu,
            base=base,
            ttl_s=ttl,
            limits=parse_limits({"memory": memory, "cpus": cpu, "pids": pids}).over(limits),
            idle=idle or Idle(),
            storage=self.remote_of(storage),
            **more,
        )
        return self._started(own, name, argv[0], secrets, timeout, on_event)

    def kernel(
        self,
        spec_name: str = "python3",
        *,
        name: str | None = None,
        env: Env | None = None,
        cwd: str | os.PathLike[str] | None = None,
        network: Network = "none",
        ports: Sequence[int] = (),
        gpu: bool = False,
        base: str = "",
        ttl: float | None = None,
        memory: str | int | None = None,
        cpu: float | None = None,
        pids: int | None = None,
        timeout: float | None = READY_S,
        on_event: OnEvent | None = None,
        limits: Limits = NO_LIMITS,
        idle: Idle | None = None,
        secrets: Env = NO_SECRETS,
        storage: str = LOCAL,
        **more: Any,
    ) -> Box:
        """Start a Jupyter kernel of an installed kernel spec in a sandbox; returns when it answers. KernelSpecError."""
        from ijfs.jupyter.starting import kernel_spec

        own = kernel_spec(
            "",
            spec_name,
            env=dict(env or {}),
            cwd=os.path.abspath(cwd or os.getcwd()),
            network=network,
            ports=tuple(ports),
            gpu=gpu,
            base=base,
            ttl_s=ttl,
            limits=parse_limits({"memory": memory, "cpus": cpu, "pids": pids}).over(limits),
            idle=idle or Idle(),
            storage=self.remote_of(storage),
            **more,
        )
        wish = "kernel" if spec_name == "python3" else spec_name
        box = self._started(own, name, wish, secrets, timeout, on_event)
        box.run("", timeout=timeout)
        return box

    def _started(
        self,
        spec: InstanceSpec,
        name: str | None,
        wish: str,
        secrets: Env,
        timeout: float | None,
        on_event: OnEvent | None,
    ) -> Box:
        """Start it by this name or, without one, by the first free one after the wish."""

        def start(chosen: str) -> InstanceInfo:
            named_so = msgspec.structs.replace(spec, name=chosen)
            return client.start(self.path, named_so, secrets=secrets, on_event=on_event)

        info = calls.within(timeout, "the start", partial(named, self.path, name, wish, start))
        return Box(self.path, info.name)

    def restore(self, snapshot: str, name: str | None = None, **options: Any) -> Box:
        """Bring a snapshot back to life beside everything that is live: `Snapshot.restore` has the options."""
        return self.snapshot(snapshot).restore(name, **options)


def default_repository() -> Repository:
    """The repository that the command line takes; made where there is none yet."""
    return Repository.open(create=True)


def start(argv: Sequence[str], **options: Any) -> Box:
    """`Repository.start` in the default repository."""
    return default_repository().start(argv, **options)


def kernel(spec_name: str = "python3", **options: Any) -> Box:
    """`Repository.kernel` in the default repository."""
    return default_repository().kernel(spec_name, **options)


def restore(snapshot: str, name: str | None = None, **options: Any) -> Box:
    """`Repository.restore` in the default repository."""
    return default_repository().restore(snapshot, name, **options)
