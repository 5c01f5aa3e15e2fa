"""ijfs_engine: the storage engine. Knows bytes, pages, chunks, trees and refs, and nothing above them.

What other layers may use is what this module exports; docs/architecture.md lists the promises. Each name is loaded when
it is first used: whoever catches an error of the engine (every client does) does not load its compiled parts, LMDB and
the codecs, which takes half of what `ijfs ps` may take.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .prune import PrunePolicy, PruneReport
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
    "arena": ("Segments",),
    "export": ("export_tree",),
    "filetree": ("Attrs",),
    "ingest": ("SnapshotWriter", "import_directory"),
    "pages": ("PageLayout", "PageRun"),
    "pins": ("Pin", "PinInfo"),
    "prune": ("PrunePolicy", "PruneReport"),
    "reader": ("Extent", "Reader", "StoredFile"),
    "records": (
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
    "refs": ("ANY", "RefChange", "Refs"),
    "repository": ("Progress", "Repository"),
    "sources": ("Source",),
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
