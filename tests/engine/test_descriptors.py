"""No descriptor is closed twice, and none is left open, when closing one fails: by Ctrl-C, by an error of the disk."""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from descriptors import Closing, open_descriptors
from storekit import contents, damage, frame_of, save

from ijfs_engine import IjfsError, Repository, export_tree, import_directory
from ijfs_engine.format.frames import chunk_id

NOISE = random.Random(5).randbytes(300_000)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built")
    with Repository.init(path / "repo") as repository:
        save(repository, {"kept": NOISE[:20_000], "more": NOISE[20_000:90_000]}, branch="main")
        save(repository, {"gone": NOISE[90_000:]}, branch="gone")
        repository.refs.delete_branch("gone")
    folder = path / "folder" / "deep" / "deeper"
    folder.mkdir(parents=True)
    (folder / "large").write_bytes(NOISE)
    (folder / "small").write_bytes(b"small")
    os.link(folder / "small", folder.parent / "again")
    with Repository.open(path / "repo") as repository:
        import_directory(repository, path / "folder", branch="tree")
    return path


def do_save(repository: Repository, path: Path) -> None:
    save(repository, {"new": NOISE[:50_000]}, branch="new")


def do_import(repository: Repository, path: Path) -> None:
    import_directory(repository, path / "folder", branch="new")


def do_export(repository: Repository, path: Path) -> None:
    with closing(repository.reader()) as reader:
        export_tree(reader, repository.snapshot(repository.resolve("tree")).root, path / "out")


def do_gc(repository: Repository, path: Path) -> None:
    repository.gc()


def do_repair(repository: Repository, path: Path) -> None:
    damage(*frame_of(repository, chunk_id(NOISE[90_000:94_096])))
    repository.fsck(repair=True)


VERBS: dict[str, Callable[[Repository, Path], None]] = {
    "save": do_save,
    "import": do_import,
    "export": do_export,
    "gc": do_gc,
    "repair": do_repair,
}


def run(verb: str, built: Path, path: Path, watch: Closing, monkeypatch: pytest.MonkeyPatch) -> BaseException | None:
    """What comes out of a verb on a copy of the repository, of which one close fails; the descriptors are looked at."""
    shutil.copytree(built, path)
    before = open_descriptors()
    came: BaseException | None = None
    with monkeypatch.context() as patch:
        try:
            with Repository.open(path / "repo") as repository:
                patch.setattr(os, "close", watch)
                VERBS[verb](repository, path)
        except (KeyboardInterrupt, OSError, IjfsError) as error:
            came = error.with_traceback(None)
            came.__context__ = None
        # What a generator holds that an error has left goes with it.
        gc.collect()
    assert watch.wrong == []
    assert open_descriptors() == before
    return came


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_while_a_descriptor_is_closed(
    verb: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises it when the system call is through: the descriptor is closed, and whoever cleans up must know."""
    whole = Closing()
    assert run(verb, built, tmp_path / "whole", whole, monkeypatch) is None
    for step in range(1, whole.count + 1):
        watch = Closing(step)
        came = run(verb, built, tmp_path / f"{step}", watch, monkeypatch)
        assert isinstance(came, KeyboardInterrupt) or watch.count < step, step
        with Repository.open(tmp_path / f"{step}" / "repo") as repository:
            assert contents(repository, repository.resolve("main"))["kept"] == NOISE[:20_000]
            assert repository.fsck().clean or verb == "repair"


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_while_a_descriptor_is_closed(
    verb: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Closing()
    assert run(verb, built, tmp_path / "whole", whole, monkeypatch) is None
    for step in range(1, whole.count + 1):
        run(verb, built, tmp_path / f"{step}", Closing(step, lambda: OSError(errno.EIO, "far away")), monkeypatch)
