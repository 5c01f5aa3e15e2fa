"""What a program may say to ijfs. Inside a sandbox, about itself: `ijfs.save()`, hooks, `%load_ext ijfs`. Outside,
about others: `ijfs.Repository`, `ijfs.kernel()` and what else docs/sdk.md has.

Imports the standard library only, and that lazily: every `ijfs` command line passes here, and so does every program in
a sandbox (`ijfs run`, a kernel installed by `ijfs kernel install`), whatever its Python has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
"""The package's metadata have it from here (pyproject.toml); to read those would take a command 15 ms."""

if TYPE_CHECKING:
    from ijfs.deployments.records import DeploymentInfo, NoDeploymentError
    from ijfs.guest import (
        Forked,
        GuestError,
        SaveResult,
        Secret,
        after_restore,
        barrier,
        before_save,
        fork,
        in_sandbox,
        save,
        secret,
        undo,
    )
    from ijfs.jupyter.cells import CellTimeoutError
    from ijfs.jupyter.kernelspec import KernelSpecError
    from ijfs.jupyter.outputs import CellResult
    from ijfs.live.client.watch import RepositoryEvent
    from ijfs.live.errors import (
        CommandError,
        CriuError,
        CriuMissingError,
        InstanceExistsError,
        InstanceExitedError,
        KeeperError,
        LimitError,
        NoInstanceError,
        ProgramRefusedError,
        ProtocolError,
        SandboxError,
    )
    from ijfs.live.model.paths import BadNameError
    from ijfs.live.model.records import InstanceInfo, Limits
    from ijfs.live.sandbox.file_access import FileInfo
    from ijfs.sdk import aio
    from ijfs.sdk.box import Box, NotAKernelError
    from ijfs.sdk.calls import CallTimeoutError
    from ijfs.sdk.commands import Command, CommandFailedError, CommandTimeoutError, Completed
    from ijfs.sdk.deployments import Deployment, NoAnswerError, deploy
    from ijfs.sdk.events import events
    from ijfs.sdk.files import FileError, Files, NoSuchFileError
    from ijfs.sdk.forks import branches
    from ijfs.sdk.repository import Repository, kernel, restore, start
    from ijfs.sdk.search import Node, explore
    from ijfs.sdk.snapshots import Difference, Snapshot
    from ijfs_engine.errors import (
        AmbiguousNameError,
        ConflictError,
        CorruptError,
        IjfsError,
        LockedError,
        NoRepositoryError,
        PartialError,
        PreflightError,
        StorageError,
        TargetDiedError,
        UnknownFormatError,
        UnknownNameError,
    )

INSIDE = (
    "Forked",
    "GuestError",
    "SaveResult",
    "Secret",
    "after_restore",
    "barrier",
    "before_save",
    "fork",
    "in_sandbox",
    "save",
    "secret",
    "undo",
)
"""What a program in a sandbox may use, on every Python from 3.9 on."""

__all__ = [
    "AmbiguousNameError",
    "BadNameError",
    "Box",
    "CallTimeoutError",
    "CellResult",
    "CellTimeoutError",
    "Command",
    "CommandError",
    "CommandFailedError",
    "CommandTimeoutError",
    "Completed",
    "ConflictError",
    "CorruptError",
    "CriuError",
    "CriuMissingError",
    "Deployment",
    "DeploymentInfo",
    "Difference",
    "FileError",
    "FileInfo",
    "Files",
    "Forked",
    "GuestError",
    "Idle",
    "IjfsError",
    "InstanceExistsError",
    "InstanceExitedError",
    "InstanceInfo",
    "KeeperError",
    "KernelSpecError",
    "LimitError",
    "Limits",
    "LockedError",
    "NoAnswerError",
    "NoDeploymentError",
    "NoInstanceError",
    "NoRepositoryError",
    "NoSuchFileError",
    "Node",
    "NotAKernelError",
    "PartialError",
    "PreflightError",
    "ProgramRefusedError",
    "ProtocolError",
    "Repository",
    "RepositoryEvent",
    "SandboxError",
    "SaveResult",
    "Secret",
    "Snapshot",
    "StorageError",
    "TargetDiedError",
    "UnknownFormatError",
    "UnknownNameError",
    "after_restore",
    "aio",
    "barrier",
    "before_save",
    "branches",
    "deploy",
    "events",
    "explore",
    "fork",
    "in_sandbox",
    "kernel",
    "load_ipython_extension",
    "restore",
    "save",
    "secret",
    "start",
    "undo",
    "unload_ipython_extension",
]


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext ijfs` calls: adds the `%ijfs` magic to an IPython shell."""
    from ijfs.guest import kernels
    from ijfs.guest.magics import load

    kernels.load_ipython_extension(shell)
    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """What `%unload_ext ijfs` calls: takes the `%ijfs` magic away again."""
    from ijfs.guest.magics import unload

    unload(shell)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ijfs' has no attribute {name!r}")
    if name in INSIDE:
        import ijfs.guest

        return getattr(ijfs.guest, name)
    from ijfs.sdk.names import find

    return find(name)


def __dir__() -> list[str]:
    return sorted(__all__)
