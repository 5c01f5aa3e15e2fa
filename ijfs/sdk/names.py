"""Where each name that `import ijfs` offers outside of a sandbox is. Called by `ijfs.__getattr__`.

Standard library only, as it is on the way of every import. Of a module that cannot be imported (inside a sandbox whose
Python has none of ijfs's packages) the error says what it is for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

WHERE = {
    "AmbiguousNameError": "ijfs_engine.errors",
    "BadNameError": "ijfs.live.model.paths",
    "Box": "ijfs.sdk.box",
    "CallTimeoutError": "ijfs.sdk.calls",
    "CellResult": "ijfs.jupyter.outputs",
    "CellTimeoutError": "ijfs.jupyter.cells",
    "Command": "ijfs.sdk.commands",
    "CommandError": "ijfs.live.errors",
    "CommandFailedError": "ijfs.sdk.commands",
    "CommandTimeoutError": "ijfs.sdk.commands",
    "Completed": "ijfs.sdk.commands",
    "ConflictError": "ijfs_engine.errors",
    "CorruptError": "ijfs_engine.errors",
    "CriuError": "ijfs.live.errors",
    "CriuMissingError": "ijfs.live.errors",
    "Deployment": "ijfs.sdk.deployments",
    "DeploymentInfo": "ijfs.deployments.records",
    "Difference": "ijfs.sdk.snapshots",
    "FileError": "ijfs.sdk.files",
    "FileInfo": "ijfs.live.sandbox.file_access",
    "Files": "ijfs.sdk.files",
    "Idle": "ijfs.live.model.records",
    "IjfsError": "ijfs_engine.errors",
    "InstanceExistsError": "ijfs.live.errors",
    "InstanceExitedError": "ijfs.live.errors",
    "InstanceInfo": "ijfs.live.model.records",
    "KeeperError": "ijfs.live.errors",
    "KernelSpecError": "ijfs.jupyter.kernelspec",
    "LimitError": "ijfs.live.errors",
    "Limits": "ijfs.live.model.records",
    "LockedError": "ijfs_engine.errors",
    "NoAnswerError": "ijfs.sdk.deployments",
    "NoDeploymentError": "ijfs.deployments.records",
    "NoInstanceError": "ijfs.live.errors",
    "NoRepositoryError": "ijfs_engine.errors",
    "NoSuchFileError": "ijfs.sdk.files",
    "Node": "ijfs.sdk.search",
    "NotAKernelError": "ijfs.sdk.box",
    "PartialError": "ijfs_engine.errors",
    "PreflightError": "ijfs_engine.errors",
    "ProgramRefusedError": "ijfs.live.errors",
    "ProtocolError": "ijfs.live.errors",
    "Repository": "ijfs.sdk.repository",
    "RepositoryEvent": "ijfs.live.client.watch",
    "SandboxError": "ijfs.live.errors",
    "Snapshot": "ijfs.sdk.snapshots",
    "StorageError": "ijfs_engine.errors",
    "TargetDiedError": "ijfs_engine.errors",
    "UnknownFormatError": "ijfs_engine.errors",
    "UnknownNameError": "ijfs_engine.errors",
    "branches": "ijfs.sdk.forks",
    "deploy": "ijfs.sdk.deployments",
    "events": "ijfs.sdk.events",
    "explore": "ijfs.sdk.search",
    "kernel": "ijfs.sdk.repository",
    "restore": "ijfs.sdk.repository",
    "start": "ijfs.sdk.repository",
}
MODULES = {"aio": "ijfs.sdk.aio"}


def find(name: str) -> Any:
    """The class, function or module of this name; ImportError where this Python has not what it needs."""
    where = MODULES.get(name) or WHERE[name]
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"ijfs.{name} is for programs outside of a sandbox, in the Python that ijfs is installed in: {error}"
        ) from error
    return module if name in MODULES else getattr(module, name)
