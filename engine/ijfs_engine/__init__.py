"""ijfs_engine: the storage engine. Knows bytes, pages, chunks, trees and refs, and nothing above them.

What other layers may use is what this module exports, and the errors; docs/architecture.md lists the promises. Each
name is loaded when it is first used: whoever catches an error of the engine (every client does) does not load its
compiled parts, LMDB and the codecs, which takes half of what `ijfs ps` may take.

Most of it is the repository: `Repository`, `SnapshotWriter`, `Reader`, `StoredFile`, `Refs`, their records and reports.
The rest is what the layers above need of the engine's own parts: `Arena` (memory that a dump is received in), the CRIU
pagemap parsers, and how long reads have waited for a disk (`io_waited_s`, `simulate_latency`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ijfs_engine._native.pagemaps import pagemap_entries, pagemap_head
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
    from ijfs_engine.format.page_images import PAGE, is_pages, pages_name
    from ijfs_engine.format.page_layout import PageLayout, PageRun
    from ijfs_engine.format.records import (
        KINDS,
        LEAF_SPAN,
        TYPE_BITS,
        Damage,
        DiskUsage,
        Entry,
        EntryKind,
        FsckReport,
        GcReport,
        Holder,
        KeptPack,
        ObjectId,
        Snapshot,
        Stats,
        Tree,
        Usage,
    )
    from ijfs_engine.maintenance.copying import CopyReport
    from ijfs_engine.maintenance.keys import Keyring, Rotation
    from ijfs_engine.maintenance.prune import PrunePolicy, PruneReport
    from ijfs_engine.read.export import Exported, export_tree
    from ijfs_engine.read.inode_numbers import InodeNumbers
    from ijfs_engine.read.reader import Reader
    from ijfs_engine.read.stored_file import Extent, StoredFile
    from ijfs_engine.remote.bucket import MissingObjectError, RemoteError
    from ijfs_engine.remote.check import CheckReport, Harm
    from ijfs_engine.remote.fetch import FetchReport
    from ijfs_engine.remote.known import KnownTree
    from ijfs_engine.remote.operation import Operation
    from ijfs_engine.remote.pull import PullReport
    from ijfs_engine.remote.push import PushReport
    from ijfs_engine.remote.remotes import Remotes
    from ijfs_engine.remote.stored_names import RemoteName
    from ijfs_engine.remote.sweep import SweepReport
    from ijfs_engine.remote.undo import UndoReport
    from ijfs_engine.repository import Repository, WayIn
    from ijfs_engine.storage.asking import ask_by
    from ijfs_engine.storage.key_files import KeyFile, describe_key, wrap_for_passphrase, wrap_for_recipients
    from ijfs_engine.storage.pins import Pin, PinInfo
    from ijfs_engine.storage.refs import ANY, RefChange, Refs
    from ijfs_engine.storage.signatures import Signature, read_allowed_signers
    from ijfs_engine.storage.unlocking import SECRET_VARIABLES, LockedRepositoryError, passphrase_given
    from ijfs_engine.util.descent import Descent
    from ijfs_engine.util.io_wait import io_waited_s, simulate_latency
    from ijfs_engine.util.owners import make_directories
    from ijfs_engine.util.progress import Progress
    from ijfs_engine.write.arena import Arena, ArenaFile, ArenaFullError, Segments
    from ijfs_engine.write.criu_pagemap import (
        COMMON_MAGIC,
        MAX_PAGEMAP,
        PAGEMAP_MAGIC,
        Pagemap,
        PagemapError,
        parse_pagemap,
    )
    from ijfs_engine.write.kept_prints import KeptPrints
    from ijfs_engine.write.on_disk import FoundOnDisk, walk_directory
    from ijfs_engine.write.snapshot_writer import SnapshotWriter, import_directory
    from ijfs_engine.write.sources import Source
    from ijfs_engine.write.tree_builder import Attrs

__all__ = [
    "ANY",
    "COMMON_MAGIC",
    "KINDS",
    "LEAF_SPAN",
    "MAX_PAGEMAP",
    "PAGE",
    "PAGEMAP_MAGIC",
    "SECRET_VARIABLES",
    "TYPE_BITS",
    "AmbiguousNameError",
    "Arena",
    "ArenaFile",
    "ArenaFullError",
    "Attrs",
    "CheckReport",
    "ConflictError",
    "CopyReport",
    "CorruptError",
    "Damage",
    "Descent",
    "DiskUsage",
    "Entry",
    "EntryKind",
    "Exported",
    "Extent",
    "FetchReport",
    "FoundOnDisk",
    "FsckReport",
    "GcReport",
    "Harm",
    "Holder",
    "IjfsError",
    "InodeNumbers",
    "KeptPack",
    "KeptPrints",
    "KeyFile",
    "Keyring",
    "KnownTree",
    "LockedError",
    "LockedRepositoryError",
    "MissingObjectError",
    "NoRepositoryError",
    "ObjectId",
    "Operation",
    "PageLayout",
    "PageRun",
    "Pagemap",
    "PagemapError",
    "PartialError",
    "Pin",
    "PinInfo",
    "PreflightError",
    "Progress",
    "PrunePolicy",
    "PruneReport",
    "PullReport",
    "PushReport",
    "Reader",
    "RefChange",
    "Refs",
    "RemoteError",
    "RemoteName",
    "Remotes",
    "Repository",
    "Rotation",
    "Segments",
    "Signature",
    "Snapshot",
    "SnapshotWriter",
    "Source",
    "Stats",
    "StorageError",
    "StoredFile",
    "SweepReport",
    "TargetDiedError",
    "Tree",
    "UndoReport",
    "UnknownFormatError",
    "UnknownNameError",
    "Usage",
    "WayIn",
    "ask_by",
    "describe_key",
    "export_tree",
    "import_directory",
    "io_waited_s",
    "is_pages",
    "make_directories",
    "pagemap_entries",
    "pagemap_head",
    "pages_name",
    "parse_pagemap",
    "passphrase_given",
    "read_allowed_signers",
    "simulate_latency",
    "walk_directory",
    "wrap_for_passphrase",
    "wrap_for_recipients",
]

_MODULES = {
    "_native.pagemaps": ("pagemap_entries", "pagemap_head"),
    "format.page_images": ("PAGE", "is_pages", "pages_name"),
    "format.page_layout": ("PageLayout", "PageRun"),
    "format.records": (
        "KINDS",
        "LEAF_SPAN",
        "TYPE_BITS",
        "Damage",
        "DiskUsage",
        "Entry",
        "EntryKind",
        "FsckReport",
        "GcReport",
        "Holder",
        "KeptPack",
        "KeyFile",
        "Keyring",
        "ObjectId",
        "Snapshot",
        "Stats",
        "Tree",
        "Usage",
        "WayIn",
        "ask_by",
        "describe_key",
    ),
    "maintenance.copying": ("CopyReport",),
    "maintenance.keys": ("Keyring", "Rotation"),
    "maintenance.prune": ("PrunePolicy", "PruneReport"),
    "read.export": ("Exported", "export_tree"),
    "read.inode_numbers": ("InodeNumbers",),
    "read.reader": ("Reader",),
    "read.stored_file": ("Extent", "StoredFile"),
    "remote.bucket": ("MissingObjectError", "RemoteError"),
    "remote.check": ("CheckReport", "Harm"),
    "remote.fetch": ("FetchReport",),
    "remote.known": ("KnownTree",),
    "remote.operation": ("Operation",),
    "remote.pull": ("PullReport",),
    "remote.push": ("PushReport",),
    "remote.remotes": ("Remotes",),
    "remote.stored_names": ("RemoteName",),
    "remote.sweep": ("SweepReport",),
    "remote.undo": ("UndoReport",),
    "repository": ("Repository", "WayIn"),
    "storage.asking": ("ask_by",),
    "storage.key_files": ("KeyFile", "describe_key", "wrap_for_passphrase", "wrap_for_recipients"),
    "storage.pins": ("Pin", "PinInfo"),
    "storage.refs": ("ANY", "RefChange", "Refs"),
    "storage.signatures": ("Signature", "read_allowed_signers"),
    "storage.unlocking": ("LockedRepositoryError", "SECRET_VARIABLES", "passphrase_given"),
    "util.descent": ("Descent",),
    "util.io_wait": ("io_waited_s", "simulate_latency"),
    "util.owners": ("make_directories",),
    "util.progress": ("Progress",),
    "write.arena": ("Arena", "ArenaFile", "ArenaFullError", "Segments"),
    "write.criu_pagemap": ("COMMON_MAGIC", "MAX_PAGEMAP", "PAGEMAP_MAGIC", "Pagemap", "PagemapError", "parse_pagemap"),
    "write.kept_prints": ("KeptPrints",),
    "write.on_disk": ("FoundOnDisk", "walk_directory"),
    "write.snapshot_writer": ("SnapshotWriter", "import_directory"),
    "write.sources": ("Source",),
    "write.tree_builder": ("Attrs",),
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
