"""ijfs_engine: the storage engine. Knows bytes, pages, chunks, trees and refs, and nothing above them.

What other layers may use is what this module exports; docs/architecture.md lists the promises. Each name is loaded when
it is first used: whoever catches an error of the engine (every client does) does not load its compiled parts, LMDB and
the codecs, which takes half of what `ijfs ps` may take.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from ijfs_engine.format.page_layout import PageLayout, PageRun
    from ijfs_engine.format.records import (
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
    from ijfs_engine.maintenance.prune import PrunePolicy, PruneReport
    from ijfs_engine.read.export import export_tree
    from ijfs_engine.read.reader import Reader
    from ijfs_engine.read.stored_file import Extent, StoredFile
    from ijfs_engine.repository import Repository
    from ijfs_engine.storage.pins import Pin, PinInfo
    from ijfs_engine.storage.refs import ANY, RefChange, Refs
    from ijfs_engine.util.progress import Progress
    from ijfs_engine.write.arena import Segments
    from ijfs_engine.write.snapshot_writer import SnapshotWriter, import_directory
    from ijfs_engine.write.sources import Source
    from ijfs_engine.write.tree_builder import Attrs

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
    "PrunePolicy",
    "PruneReport",
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

_MODULES = {
    "write.arena": ("Segments",),
    "read.export": ("export_tree",),
    "write.tree_builder": ("Attrs",),
    "write.snapshot_writer": ("SnapshotWriter", "import_directory"),
    "format.page_layout": ("PageLayout", "PageRun"),
    "storage.pins": ("Pin", "PinInfo"),
    "maintenance.prune": ("PrunePolicy", "PruneReport"),
    "read.reader": ("Reader",),
    "read.stored_file": ("Extent", "StoredFile"),
    "format.records": (
        "Damage",
        "DiskUsage",
        "Entry",
        "FsckReport",
        "GcReport",
        "ObjectId",
        "Snapshot",
        "Stats",
        "Tree",
        "Usage",
    ),
    "storage.refs": ("ANY", "RefChange", "Refs"),
    "repository": ("Repository",),
    "util.progress": ("Progress",),
    "write.sources": ("Source",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load what is asked for; the errors are what is left when no other module has the name."""
    module = _MODULE_OF.get(name, "errors" if name in __all__ else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
