"""What a snapshot needs of the machine it comes back on: little enough to be asked of another one before any is sent.

`of_snapshot` reads it where the snapshot is, `fit.py` compares it with the machine where it is asked. No value of a
program goes along: no variables, no command line, no memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ijfs.live.checkpoint.machine_files import machine_files
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore
from ijfs.live.criu import eager_pages
from ijfs.live.criu.image_format import RegularFile, parse_areas
from ijfs.live.model.records import Base, Network
from ijfs_engine import Snapshot, is_pages
from ijfs_engine.errors import IjfsError


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot says of the machine it was saved on, and what it takes.

    `versions`: of the machine, kernel, CRIU, processor. `files`: those of the machine that it has open or maps, none
    where it stands on a base. `mounts`: that it saw. `memory`, `written`, `largest_mapping`, `huge_pages`: bytes; of
    `written` are the files that come back with it. `gpu`: a GpuRecord."""

    versions: dict[str, str]
    base: Base | None = None
    files: tuple[RegularFile, ...] = ()
    mounts: tuple[str, ...] = ()
    memory: int = 0
    written: int = 0
    largest_mapping: int = 0
    huge_pages: int = 0
    network: Network = "none"
    egress: tuple[str, ...] = ()
    gpu: dict[str, Any] | None = None


def of_snapshot(repo: Path, name: str) -> Needs:
    """UnknownNameError; NotLiveError for an imported one; NoRepositoryError, CorruptError."""
    store = SnapshotStore(repo)
    try:
        snapshot, meta = store.load(name)
        return _needs(store, snapshot, meta)
    finally:
        store.close()


def encode(needs: Needs) -> str:
    """As JSON. (msgspec's own writer refuses paths that are no UTF-8.)"""
    return json.dumps(msgspec.to_builtins(needs))


def decode(text: str) -> Needs:
    """What another machine sent. IjfsError for what is none."""
    try:
        return msgspec.convert(json.loads(text), Needs)
    except (ValueError, msgspec.MsgspecError) as error:
        raise IjfsError(f"these are no needs of a snapshot: {error}", hint="the same ijfs on both machines") from error


def _needs(store: SnapshotStore, snapshot: Snapshot, meta: LiveMeta) -> Needs:
    images = _small_images(store, snapshot)
    own = meta.base is None
    return Needs(
        versions=meta.versions,
        base=meta.base,
        files=tuple(machine_files(store, snapshot)) if own else (),
        mounts=tuple(volume.path for volume in meta.volumes) if own else (),
        memory=meta.image_bytes,
        written=meta.workspace_bytes,
        largest_mapping=_largest_mapping(images),
        huge_pages=eager_pages.reasons(images).get(eager_pages.HUGETLB, 0),
        network=meta.spec.network,
        egress=meta.spec.egress,
        gpu=meta.gpu,
    )


def _small_images(store: SnapshotStore, snapshot: Snapshot) -> dict[str, bytes]:
    tree = store.tree_at(snapshot, "images")
    entries = store.reader.tree(tree).entries if tree is not None else ()
    named = {os.fsdecode(entry.name): entry for entry in entries if entry.kind == "f"}
    opened = {name: store.reader.open(entry) for name, entry in named.items() if not is_pages(name)}
    return {name: file.read(0, file.size) for name, file in opened.items()}


def _largest_mapping(images: Mapping[str, bytes]) -> int:
    memories = {name: data for name, data in images.items() if name.startswith("mm-")}
    return max(
        (area.end - area.start for name, data in memories.items() for area in parse_areas(name, data)), default=0
    )
