"""ijfs_engine: the storage engine. Knows bytes, pages, chunks, trees and refs, and nothing above them.

What other layers may use is what this module exports; docs/architecture.md lists the promises.
"""

from .arena import Segments
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
from .export import export_tree
from .filetree import Attrs
from .ingest import SnapshotWriter, import_directory
from .pages import PageLayout, PageRun
from .pins import Pin, PinInfo
from .reader import Extent, Reader, StoredFile
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
from .sources import Source

__all__ = [
    "ANY",
    "AmbiguousNameError",
    "Attrs",
    "ConflictError",
    "CorruptError",
    "Damage",
    "DiskUsage",
    "Entry",
    "Extent",
    "FsckReport",
    "GcReport",
    "IjfsError",
    "LockedError",
    "NoRepositoryError",
    "ObjectId",
    "PageLayout",
    "PageRun",
    "PartialError",
    "Pin",
    "PinInfo",
    "PreflightError",
    "Progress",
    "Reader",
    "RefChange",
    "Refs",
    "Repository",
    "Segments",
    "Snapshot",
    "SnapshotWriter",
    "Source",
    "Stats",
    "StorageError",
    "StoredFile",
    "TargetDiedError",
    "Tree",
    "UnknownFormatError",
    "UnknownNameError",
    "Usage",
    "export_tree",
    "import_directory",
]
