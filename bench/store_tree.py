"""The tree of real kernel snapshots that the store benchmark stores: `python -m bench.store_tree DIR`, as root.

Two notebooks. In one a frame is loaded, 1% of its rows change, columns are derived, a model is fitted, and from there
two siblings go on differently; a kernel started apart from it loads the same data. In the other a torch model (CPU) is
made, used, and trained. A finished snapshot is kept, so a second run builds only what is missing. Called by store.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import store_cells as cells
from bench.store_kernels import Kernel, Saved, restored, started
from ijfs.live.sandbox import namespaces as ns


@dataclass(frozen=True, slots=True)
class Step:
    """One snapshot: its name, whose child it is (None: a new kernel), the cells run before it is taken.

    `fork`: made from a restore of the parent's images instead of in the parent's own process. `counted`: whether it is
    one of the tree's (the one that is not measures the save of a kernel in which nothing happened).
    """

    name: str
    parent: str | None
    cells: tuple[str, ...]
    fork: bool = False
    torch: bool = False
    counted: bool = True


FRAME_STEPS = (
    Step("01-frame", None, (cells.LOAD_FRAME,)),
    Step("02-rows-changed", "01-frame", (cells.CHANGE_ROWS,)),
    Step("03-features", "02-rows-changed", (cells.ADD_FEATURES,)),
    Step("04-model", "03-features", (cells.FIT_MODEL,)),
    Step("05-left", "04-model", (cells.GO_LEFT,), fork=True),
    Step("06-right", "04-model", (cells.GO_RIGHT,), fork=True),
    Step("07-other-kernel", None, (cells.LOAD_FRAME, cells.CHANGE_ROWS)),
    Step("unchanged", "04-model", (), fork=True, counted=False),
)
TORCH_STEPS = (
    Step("08-torch", None, (cells.MAKE_NETWORK,), torch=True),
    Step("09-inferred", "08-torch", (cells.INFER,), torch=True),
    Step("10-trained", "09-inferred", (cells.MAKE_OPTIMIZER, cells.TRAIN), torch=True),
    Step("11-trained-more", "10-trained", (cells.TRAIN,), torch=True),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of the tree on disk."""

    name: str
    parent: str | None
    images: Path
    bytes: int


def has_module(python: str, module: str) -> bool:
    """Whether that Python can import it."""
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def steps(*, torch: bool) -> tuple[Step, ...]:
    """What to build, in order; without torch its line is left out."""
    return FRAME_STEPS + (TORCH_STEPS if torch else ())


def snapshots(tree: Path) -> list[Snapshot]:
    """The tree's finished snapshots in the order they were taken, parents first."""
    found = [_snapshot(tree, step) for step in steps(torch=True) if step.counted and _is_done(tree, step)]
    return sorted(found, key=lambda one: one.name)


def unchanged(tree: Path) -> Snapshot:
    """The second save of a kernel in which nothing was run since the first."""
    return next(_snapshot(tree, step) for step in FRAME_STEPS if not step.counted)


def _snapshot(tree: Path, step: Step) -> Snapshot:
    images = Saved(tree / step.name).images
    return Snapshot(step.name, step.parent, images, sum(path.stat().st_size for path in images.iterdir()))


def _is_done(tree: Path, step: Step) -> bool:
    return (tree / step.name / "done").exists()


def is_complete(tree: Path, python: str, scale: float) -> bool:
    """Whether a tree of this scale stands there. RuntimeError when there is one of another scale."""
    record = tree / "tree.json"
    if not record.exists():
        return False
    made = json.loads(record.read_text())
    if made["scale"] != scale:
        raise RuntimeError(f"{tree} holds a tree of scale {made['scale']}; choose another --tree or remove it")
    return all(_is_done(tree, step) for step in steps(torch=has_module(python, "torch")))


def build(tree: Path, python: str, scale: float) -> None:
    """Build what is missing. CriuError, RuntimeError."""
    ns.private_mounts()
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "tree.json").write_text(json.dumps({"scale": scale}))
    todo = steps(torch=has_module(python, "torch"))
    with tempfile.TemporaryDirectory(prefix="boxes-", dir=tree) as boxes:
        for line in _lines(todo):
            _build_line(tree, Path(boxes), python, scale, line)


def _lines(todo: Sequence[Step]) -> list[list[Step]]:
    """Steps in groups that one process lives through: a new kernel, or a fork, and what follows in that process."""
    lines: list[list[Step]] = []
    for step in todo:
        if step.parent is None or step.fork:
            lines.append([])
        lines[-1].append(step)
    return lines


def _build_line(tree: Path, boxes: Path, python: str, scale: float, line: Sequence[Step]) -> None:
    if all(_is_done(tree, step) for step in line):
        return
    first = line[0]
    with ExitStack() as stack:
        box = boxes / first.name
        if first.parent is None:
            kernel = stack.enter_context(started(box, python))
            kernel.run(cells.parameters(scale))
        else:
            kernel = stack.enter_context(restored(box, Saved(tree / first.parent)))
        for step in line:
            _take(tree, kernel, step)


def _take(tree: Path, kernel: Kernel, step: Step) -> None:
    began = time.monotonic()
    for code in step.cells:
        kernel.run(code)
    saved = Saved(tree / step.name)
    shutil.rmtree(saved.directory, ignore_errors=True)
    frozen = kernel.dump(saved)
    (saved.directory / "done").touch()
    size = _snapshot(tree, step).bytes
    print(f"{step.name:16} {size / 1e6:7.0f} MB  {time.monotonic() - began:5.1f} s, frozen {frozen:.2f} s", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--python", default=sys.executable, help="the kernels' Python")
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 makes about 7 GB")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("the tree is made by CRIU, which needs root")
    build(options.tree.resolve(), os.path.abspath(options.python), options.scale)


if __name__ == "__main__":
    main()
