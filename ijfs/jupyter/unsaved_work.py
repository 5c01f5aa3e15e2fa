"""What an ended kernel wrote where its user works, and would be missed. Called by provisioner.py before it cleans up.

The sandbox's files are the kernel's own, and go with it unless they were saved: right for caches and scratch files, but
a notebook's results in its working directory are what it was run for.
"""

from __future__ import annotations

from pathlib import Path

from ijfs.live.checkpoint.ended_files import unsaved_files
from ijfs.live.model.paths import InstancePaths, SandboxPaths
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceRecord
from ijfs.live.sandbox import disk
from ijfs.live.sandbox.volumes import OWN, is_below

BY_PRODUCTS = frozenset({"__pycache__", ".ipynb_checkpoints"})


def written_work(repo: Path, name: str) -> Path | None:
    """Where on the host an ended instance's own files of its working directory are; None when it wrote none there."""
    paths = InstancePaths.of(repo, name)
    record = read_record(paths)
    box = paths.sandbox(record.generation)
    directory = _upper_of_cwd(box, record)
    with disk.opened(box) as place:
        seen = place / directory.relative_to(box.layers)
        if not seen.is_dir() or not any(_is_work(entry) for entry in seen.iterdir()):
            return None
    return box.image if box.image.exists() else directory


def wrote_elsewhere(repo: Path, name: str) -> bool:
    """Whether an ended instance wrote files outside of its working directory that are in no snapshot: not scratch
    files, and not what programs keep for themselves in hidden directories."""
    paths = InstancePaths.of(repo, name)
    found = map(Path, unsaved_files(paths, read_record(paths)))
    return any(not is_below(path, OWN) and not any(part.startswith(".") for part in path.parts) for path in found)


def _upper_of_cwd(layers: SandboxPaths, record: InstanceRecord) -> Path:
    """The working directory in the writable layer that covers it: the innermost volume's, else the root's."""
    cwd = Path(record.spec.cwd)
    covering = [volume for volume in record.volumes if cwd.is_relative_to(volume.path)]
    if not covering:
        return layers.upper / cwd.relative_to("/")
    innermost = max(covering, key=lambda volume: len(volume.path))
    return layers.volume(innermost.key).upper / cwd.relative_to(innermost.path)


def _is_work(entry: Path) -> bool:
    """A file, or a directory with one somewhere in it. Directories alone appear when a file below is looked up."""
    if entry.name in BY_PRODUCTS:
        return False
    if entry.is_dir() and not entry.is_symlink():
        return any(_is_work(below) for below in entry.iterdir())
    return entry.is_file() or entry.is_symlink()
