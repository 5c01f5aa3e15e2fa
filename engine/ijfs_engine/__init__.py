"""ijfs_engine: the storage engine. Knows bytes, pages, chunks, trees and refs, and nothing above them.

What other layers may use is what this module exports; docs/architecture.md lists the promises.
"""

from .errors import (
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
from .pins import Pin, PinInfo
from .records import (
    Damage,
    DiskUsage,
    Entry,
    FsckReport,
    GcReport,
    ObjectId,
    Snapshot,
    Stats,
    Tree,
    Usage,
)
from .refs import ANY, RefChange, Refs
from .repository import Progress, Repository

__all__ = [
    "ANY",
    "AmbiguousNameError",
    "ConflictError",
    "CorruptError",
    "Damage",
    "DiskUsage",
    "Entry",
    "FsckReport",
    "GcReport",
    "IjfsError",
    "LockedError",
    "NoRepositoryError",
    "ObjectId",
    "PartialError",
    "Pin",
    "PinInfo",
    "PreflightError",
    "Progress",
    "RefChange",
    "Refs",
    "Repository",
    "Snapshot",
    "Stats",
    "StorageError",
    "TargetDiedError",
    "Tree",
    "UnknownFormatError",
    "UnknownNameError",
    "Usage",
]
