"""What the panel shows of a repository: the scene as JSON, its rows laid out as the command line draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ijfs.drawing.layout import NAMED, PictureRow
from ijfs.drawing.tree import rows_of
from ijfs.history.scene import Scene
from ijfs.history.snapshots import program_of
from ijfs.live.checkpoint.undoing import count_of

if TYPE_CHECKING:
    from ijfs.live.client.api import InstanceInfo
    from ijfs_engine import Snapshot

PathOf = Callable[[str], str | None]
"""A notebook's path in the server, of its path on the machine."""


def scene_json(scene: Scene, path_of: PathOf, *, fold: bool) -> dict[str, Any]:
    """Everything that does not change with who asks."""
    return {
        "repository": scene.path,
        "stored": scene.stored,
        "logical": scene.logical,
        "snapshots": [snapshot_json(scene, s, path_of) for s in scene.history.snapshots.values()],
        "rows": [_row(row) for row in rows_of(scene.drawn(), NAMED, fold=fold)],
    }


def snapshot_json(scene: Scene, snapshot: Snapshot, path_of: PathOf) -> dict[str, Any]:
    """One snapshot, with what lives on it."""
    meta = snapshot.meta
    return {
        **scene.history.json(snapshot),
        "size": snapshot.size,
        "added": snapshot.added,
        "live": [info.name for info in scene.at(snapshot.id)],
        "program": program_of(snapshot),
        "notebook": path_of(str(spec_of(snapshot).get("notebook", ""))),
        "kernel": spec_of(snapshot).get("kind") == "kernel" and not meta.get("ended"),
        "auto": meta.get("auto") is True,
        "frozen_s": meta.get("frozen_s"),
        "count": count_of(snapshot),
    }


def live_json(info: InstanceInfo, kernels: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, Any]:
    """A live program, and which kernel of this server it is."""
    kernel = kernels.get(info.name)
    return {
        "name": info.name,
        "snapshot": info.snapshot,
        "memory": info.memory,
        "busy": info.kernel is not None and info.kernel.busy,
        "kernel": kernel,
        "path": paths.get(kernel or ""),
    }


def made_by(scene: Scene, instance: str, notebook: str) -> list[bytes]:
    """The snapshots that a program made, or that were made of a notebook's kernels."""
    standing = [bytes.fromhex(i.snapshot) for i in scene.live if i.name == instance and i.snapshot]
    made = [
        s.id
        for s in scene.history.snapshots.values()
        if (instance and program_of(s) == instance) or (notebook and spec_of(s).get("notebook") == notebook)
    ]
    return standing + made


def spec_of(snapshot: Snapshot) -> Mapping[str, Any]:
    """How the program of a snapshot was started (records.InstanceSpec)."""
    spec = snapshot.meta.get("spec")
    return spec if isinstance(spec, dict) else {}


def _row(row: PictureRow) -> dict[str, Any]:
    found: dict[str, Any] = {"strokes": [[kind.strip() or "blank", lane] for kind, lane in row.strokes]}
    if row.node is not None:
        found["id"] = row.node.id
    if row.folded:
        found["folded"] = _ids(row.folded)
    if row.fan:
        found["fan"] = _ids(row.fan)
    return found


def _ids(nodes: Sequence[Any]) -> list[str]:
    return [node.id for node in nodes]
