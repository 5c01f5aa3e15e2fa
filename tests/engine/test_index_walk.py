"""Ordinary verbs on a damaged index: every page is looked at before LMDB believes one, so nothing dies of a signal."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_mutations import mutate
from storekit import save

from ijfs_engine import CorruptError, IjfsError, Repository
from ijfs_engine.format.place import Place
from ijfs_engine.storage import index as index_module
from ijfs_engine.storage import index_stamp
from ijfs_engine.storage.index import CHUNKS, META, REFLOG, TABLES, Index, Update
from ijfs_engine.storage.index_file import meta_of, newest_meta
from ijfs_engine.storage.index_pages import Pages, look_over, look_through, read_head

CASES = 150
ROWS = 6000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose index has branches, long values and free pages: 200 pages and more."""
    path = tmp_path_factory.mktemp("large") / "repo"
    rng = random.Random(3)
    with Repository.init(path) as repository:
        for number in range(3):
            save(repository, {"a": rng.randbytes(30_000), "b": b"%d" % number}, branch=f"b{number}")
        row = Place(1, 64, 100, 100, 0, 0).encode()
        rows = sorted((rng.randbytes(32), row) for _ in range(ROWS))
        repository.index.write(lambda update: update.put_many(CHUNKS, rows))
        repository.index.write(lambda update: update.put(META, b"long", bytes(9000)))
        gone = [key for key, _ in rows[::3]]
        repository.index.write(lambda update: update.delete_many(CHUNKS, gone))
        repository.refs.set_tag("t", repository.resolve("b1"))
    old = path.parent / "old" / "one"
    old.mkdir(parents=True)
    shutil.copy(path / "index" / "data.mdb", old / "index")
    shutil.copy(path / "journal", old / "journal")
    with Repository.open(path) as repository:
        save(repository, {"a": b"newer"}, branch="b0")
    return path


def walked(path: Path) -> str | None:
    """What the compiled look says of an index."""
    with path.open("rb", buffering=0) as data:
        meta = newest_meta(read_head(data.fileno()))
        return look_through(data.fileno(), meta) if meta else "no meta page"


def read(path: Path) -> list[str]:
    """What the look in Python says."""
    with path.open("rb", buffering=0) as data:
        meta = newest_meta(read_head(data.fileno()))
        if meta is None:
            return ["no meta page"]
        pages = Pages(data.fileno(), meta)
        for name, tree in pages.tables().items():
            pages.read_through(tree, name.decode(errors="replace"))
        pages.check_free()
        return pages.faults


def test_a_sound_index_is_sound(large: Path) -> None:
    assert walked(large / "index" / "data.mdb") is None
    assert read(large / "index" / "data.mdb") == []


def test_both_looks_see_the_same_damage(large: Path, tmp_path: Path) -> None:
    seen = 0
    for number in range(CASES):
        repository = copy(large, tmp_path)
        what = mutate(repository, large.parent / "old", "index", random.Random(f"walk {number}"))
        data = repository / "index" / "data.mdb"
        if data.exists() and data.stat().st_size > 8192:
            fault, faults = walked(data), read(data)
            assert (fault is not None) == bool(faults), (number, what, fault, faults)
            seen += bool(faults)
    assert seen > CASES // 10


def copy(large: Path, tmp_path: Path) -> Path:
    repository = tmp_path / "repo"
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(large, repository)
    return repository


VERBS: dict[str, Callable[[Repository], object]] = {
    "look": lambda repository: (repository.snapshots(), repository.du(), repository.refs.log(), repository.stats()),
    "read": lambda repository: [repository.reader().tree(snapshot.root).entries for snapshot in repository.snapshots()],
    "save": lambda repository: save(repository, {"new": random.Random(9).randbytes(50_000)}, branch="new"),
    "name": lambda repository: repository.refs.set_tag("new", repository.resolve("b0")),
    "gc": lambda repository: (repository.refs.delete_branch("b2"), repository.gc()),
}


def died(path: Path) -> str | None:
    """How a process ends that runs all verbs on a repository; None where each works or has a sentence."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = 0
        for verb in VERBS.values():
            try:
                with Repository.open(path) as repository:
                    verb(repository)
            except IjfsError:
                pass
            except BaseException:
                code = 99
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return None if status == 0 else f"status {status:#x}"


def test_no_verb_dies_of_a_damaged_index(large: Path, tmp_path: Path) -> None:
    ends = {}
    for number in range(CASES // 5):
        repository = copy(large, tmp_path)
        what = mutate(repository, large.parent / "old", "index", random.Random(f"verbs {number}"))
        if end := died(repository):
            ends[number, what] = end
    assert not ends


def change_a_page(path: Path, number: int) -> None:
    whole = path.read_bytes()
    at = number * 4096 + 16
    path.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])


def change_a_page_that_only_the_walk_sees(path: Path) -> None:
    whole = path.read_bytes()
    for number in range(2, len(whole) // 4096):
        change_a_page(path, number)
        if look_over(path, TABLES) is None and walked(path) is not None:
            return
        path.write_bytes(whole)
    raise AssertionError("there is no such page")


def test_a_stamp_spares_a_large_index_the_look_until_somebody_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_stamp, "LARGE", 1)
    looks = []
    real = look_through

    def counted(fd: int, meta: object) -> str | None:
        looks.append(fd)
        return real(fd, meta)  # type: ignore[arg-type]

    monkeypatch.setattr(index_module, "look_through", counted)
    path = tmp_path / "repo"
    with Repository.init(path) as repository:
        save(repository, {"a": b"x"}, branch="main")
    looks.clear()
    Repository.open(path).close()
    assert looks == []
    data = path / "index" / "data.mdb"
    whole = data.read_bytes()
    change_a_page_that_only_the_walk_sees(data)
    looks.clear()
    with pytest.raises(CorruptError, match="is damaged"):
        Repository.open(path)
    assert len(looks) == 1
    data.write_bytes(whole)
    with Repository.open(path) as again:
        assert len(looks) == 2, "the times are others"
        again.refs.set_tag("t", again.resolve("main"))
    Repository.open(path).close()
    assert len(looks) == 2


def test_damage_that_came_while_it_was_open_is_not_stamped_as_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_stamp, "LARGE", 1)
    index = Index.open(tmp_path / "index")
    put(index, b"1")
    assert index_stamp.Stamp(tmp_path / "index" / "data.mdb").is_fresh()
    os.utime(tmp_path / "index" / "data.mdb")  # somebody else wrote
    put(index, b"2")
    index.close()
    assert not index_stamp.Stamp(tmp_path / "index" / "data.mdb").is_fresh()


def put(index: Index, key: bytes) -> None:
    def change(update: Update) -> None:
        update.put(REFLOG, key, b"row")

    index.write(change)


def test_a_commit_that_waits_for_the_disk_keeps_nobody_from_opening(tmp_path: Path) -> None:
    """Its meta page is the newest in the file then, and readers still get the state before."""
    index = Index.open(tmp_path / "index")
    put(index, b"1")
    put(index, b"2")
    data = tmp_path / "index" / "data.mdb"
    with index.read() as view:
        transaction = view._txn.id()
        head = data.read_bytes()[: 2 * 4096]
        put_in_another_process(tmp_path / "index", b"3")
        later = data.read_bytes()[: 2 * 4096]
    newest = newest_meta(later)
    assert newest is not None
    assert newest.transaction == transaction + 1
    assert meta_of(later, transaction) == newest_meta(head)
    index.close()


def put_in_another_process(path: Path, key: bytes) -> None:
    code = (
        "import sys; from pathlib import Path; from ijfs_engine.storage.index import REFLOG, Index;"
        "index = Index.open(Path(sys.argv[1]));"
        "index.write(lambda update: update.put(REFLOG, sys.argv[2].encode(), b'row')); index.close()"
    )
    subprocess.run([sys.executable, "-c", code, os.fspath(path), key.decode()], check=True)
