"""Push, fetch, pull and reading from a store, on a directory as the store: nothing of it needs a network."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from storekit import contents, read, save

from ijfs_engine import CorruptError, IjfsError, Repository, StorageError, UnknownNameError
from ijfs_engine.remote import packing

RNG = random.Random(11)


def noise(size: int) -> bytes:
    return RNG.randbytes(size)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/bucket"


@pytest.fixture
def other(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "other")


def branches(repository: Repository) -> dict[str, bytes]:
    return {f"branch/{name}": ident for name, ident in repository.refs.branches().items()}


def test_what_is_pushed_can_be_read_elsewhere_before_it_is_there(
    repository: Repository, other: Repository, url: str
) -> None:
    files = {"a": noise(50_000), "b": noise(300), "c": noise(9000)}
    saved = save(repository, files, branch="main", message="hello")
    repository.remotes.add("origin", url)
    report = repository.remotes.push("origin", branches(repository))
    assert report.snapshots == [saved.id]
    other.remotes.add("origin", url)
    assert other.remotes.fetch("origin").new == 1
    ident = other.resolve("origin/main")
    assert ident == saved.id
    assert other.snapshot(ident).message == "hello"
    assert not other.is_here(ident)
    assert contents(other, ident) == files


def test_a_second_push_sends_what_is_new(repository: Repository, url: str) -> None:
    same = noise(400_000)
    first = save(repository, {"same": same, "new": noise(4000)}, branch="main")
    repository.remotes.add("origin", url)
    repository.remotes.push("origin", branches(repository))
    save(repository, {"same": same, "new": noise(4000)}, branch="main", parents=[first.id])
    report = repository.remotes.push("origin", branches(repository))
    assert 4000 < report.sent < 8000
    assert repository.remotes.push("origin", branches(repository)).sent == 0


def test_a_pull_counts_nothing_for_here_that_is_in_a_pack_which_is_gone(
    repository: Repository, other: Repository, url: str
) -> None:
    """It is refused then, and brings what is lost once a repair has let go of it."""
    same = noise(200_000)
    first = save(repository, {"same": same}, branch="main")
    repository.remotes.add("origin", url)
    repository.remotes.push("origin", branches(repository))
    other.remotes.add("origin", url)
    other.remotes.pull("origin")
    for path in (other.path / "packs").glob("*.pack"):
        path.unlink()
    second = save(repository, {"same": same, "new": noise(900)}, branch="main", parents=[first.id])
    repository.remotes.push("origin", branches(repository))
    with pytest.raises(CorruptError):
        other.remotes.pull("origin")
    assert not other.is_here(second.id)
    other.fsck(repair=True)
    other.remotes.pull("origin")
    shutil.rmtree(url.removeprefix("file://"))
    with Repository.open(other.path) as fresh:
        assert contents(fresh, second.id)["same"] == same


def test_what_is_pulled_is_here_without_the_store(
    repository: Repository, other: Repository, url: str, tmp_path: Path
) -> None:
    old = save(repository, {"a": noise(50_000)}, branch="main")
    files = {"a": noise(50_000), "b": noise(5000)}
    new = save(repository, files, branch="main", parents=[old.id])
    repository.refs.set_tag("v1", old.id)
    repository.remotes.add("origin", url)
    repository.remotes.push("origin", {**branches(repository), "tag/v1": old.id})
    other.remotes.add("origin", url)
    report = other.remotes.pull("origin")
    assert report.snapshots == [old.id, new.id]
    other.remotes.remove("origin")
    (tmp_path / "bucket").rename(tmp_path / "gone")
    assert contents(other, other.resolve("main")) == files
    assert other.resolve("v1") == other.resolve("main~1") == old.id
    assert other.fsck().clean


def test_branches_that_moved_apart_are_both_kept(repository: Repository, other: Repository, url: str) -> None:
    for each in (repository, other):
        each.remotes.add("origin", url)
    root = save(repository, {"a": noise(5000)}, branch="main")
    repository.remotes.push("origin", branches(repository))
    other.remotes.pull("origin")
    mine = save(repository, {"a": noise(5000)}, branch="main", parents=[root.id])
    theirs = save(other, {"a": noise(5000)}, branch="main", parents=[root.id])
    repository.remotes.push("origin", branches(repository))
    report = other.remotes.push("origin", branches(other))
    (name,) = report.apart.values()
    assert name.startswith("branch/main@")
    repository.remotes.fetch("origin")
    refs = repository.remotes.known("origin").refs
    assert (refs["branch/main"], refs[name]) == (mine.id, theirs.id)
    assert other.remotes.pull("origin", ["main"]).apart == {"branch/main": "branch/main@origin"}
    assert other.refs.branches() == {"main": theirs.id, "main@origin": mine.id}


@pytest.mark.parametrize("again", [False, True])
def test_who_went_apart_pushes_again_after_a_pull(
    repository: Repository, other: Repository, url: str, again: bool
) -> None:
    """The pull brings the name that the own branch has there: two branches here, one name there."""
    for one in (repository, other):
        one.remotes.add("origin", url)
    theirs = save(repository, {"a": b"theirs"}, branch="main")
    mine = save(other, {"a": b"mine"}, branch="main")
    repository.remotes.push("origin", {"branch/main": theirs.id})
    (place,) = other.remotes.push("origin", {"branch/main": mine.id}).apart.values()
    other.remotes.pull("origin", [])
    if again:
        mine = save(other, {"a": b"mine, later"}, branch="main", parents=[mine.id])
    refs = {f"branch/{name}": ident for name, ident in other.refs.branches().items()}
    report = other.remotes.push("origin", refs)
    assert report.apart["branch/main"].startswith("branch/main@")
    assert report.refs[report.apart["branch/main"]] == mine.id
    assert report.apart["branch/main"] == place, "it goes on under the name that it has"


def test_who_went_apart_goes_on_under_one_name(repository: Repository, other: Repository, url: str) -> None:
    for each in (repository, other):
        each.remotes.add("origin", url)
    root = save(repository, {"a": noise(500)}, branch="main")
    repository.remotes.push("origin", branches(repository))
    other.remotes.pull("origin")
    heads = {}
    for step in range(3):
        for each in (repository, other):
            before = heads.get(each, root.id)
            heads[each] = save(each, {"a": noise(500 + step)}, branch="main", parents=[before]).id
            each.remotes.push("origin", branches(each))
    repository.remotes.fetch("origin")
    refs = repository.remotes.known("origin").refs
    assert len(refs) == 2
    assert set(refs.values()) == set(heads.values())


def test_a_place_that_holds_something_else_is_left_alone(repository: Repository, url: str, tmp_path: Path) -> None:
    save(repository, {"a": b"x"}, branch="main")
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "holiday.jpg").write_bytes(b"photo")
    repository.remotes.add("origin", url)
    with pytest.raises(IjfsError, match="something else"):
        repository.remotes.push("origin", branches(repository))
    assert [path.name for path in bucket.iterdir()] == ["holiday.jpg"]


def test_there_is_nothing_before_the_first_push(repository: Repository, url: str) -> None:
    repository.remotes.add("origin", url)
    with pytest.raises(IjfsError, match="no tree"):
        repository.remotes.fetch("origin")
    with pytest.raises(UnknownNameError):
        repository.resolve("origin/main")


def test_a_snapshot_whose_root_came_with_another_is_opened_whole(
    repository: Repository, other: Repository, url: str
) -> None:
    repository.remotes.add("origin", url)
    files = [{"same": noise(9000), f"f{n}": noise(9000)} for n in range(3)]
    first = save(repository, files[0], branch="main")
    repository.remotes.push("origin", branches(repository))
    second = save(repository, {**files[0], **files[1]}, branch="main", parents=[first.id])
    third = save(repository, files[2], branch="main", parents=[second.id])
    repository.remotes.push("origin", branches(repository))  # both records are in one pack
    other.remotes.add("origin", url)
    other.remotes.fetch("origin")
    assert contents(other, third.id) == files[2]
    assert contents(other, second.id) == {**files[0], **files[1]}


def test_what_goes_from_the_far_index_is_learnt_again(repository: Repository, other: Repository, url: str) -> None:
    repository.remotes.add("origin", url)
    files = {"a": noise(30_000), "b": noise(9000)}
    saved = save(repository, files, branch="main")
    repository.remotes.push("origin", branches(repository))
    other.remotes.add("origin", url)
    other.remotes.fetch("origin")
    tree = other.store.tree(other.snapshot(saved.id).root)
    elsewhere = other.remotes.elsewhere()
    assert elsewhere is not None
    elsewhere.far(other.remotes.all()[0]).forget_all()
    assert read(other, tree.entries[0].content) == files["a"]


def test_a_store_that_did_not_answer_once_is_asked_again(
    repository: Repository, other: Repository, url: str, tmp_path: Path
) -> None:
    repository.remotes.add("origin", url)
    files = {"a": noise(30_000)}
    saved = save(repository, files, branch="main")
    repository.remotes.push("origin", branches(repository))
    other.remotes.add("origin", url)
    other.remotes.fetch("origin")
    (tmp_path / "bucket").rename(tmp_path / "away")
    with pytest.raises(StorageError):
        contents(other, saved.id)
    shutil.rmtree(tmp_path / "bucket", ignore_errors=True)
    (tmp_path / "away").rename(tmp_path / "bucket")
    assert contents(other, saved.id) == files


def test_a_push_beside_which_the_far_index_was_emptied_lists_all_packs(
    repository: Repository, other: Repository, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.remotes.add("origin", url)
    files = {"a": noise(30_000), "b": noise(9000)}
    saved = save(repository, files, branch="main")
    times = iter([True])
    finish = packing.Sender.finish

    def forgetting(self: packing.Sender) -> None:
        finish(self)
        if next(times, False):
            self._far.forget_all()

    monkeypatch.setattr(packing.Sender, "finish", forgetting)
    repository.remotes.push("origin", branches(repository))
    other.remotes.add("origin", url)
    other.remotes.fetch("origin")
    assert contents(other, saved.id) == files


def test_what_is_saved_after_a_remote_snapshot_counts_on_no_remote(
    repository: Repository, other: Repository, url: str, tmp_path: Path
) -> None:
    files = {"a": noise(50_000)}
    saved = save(repository, files, branch="main")
    repository.remotes.add("origin", url)
    repository.remotes.push("origin", branches(repository))
    other.remotes.add("origin", url)
    other.remotes.fetch("origin")
    assert contents(other, saved.id) == files
    after = save(other, files, branch="main", parents=[saved.id])
    (tmp_path / "bucket").rename(tmp_path / "gone")
    other.close()
    with Repository.open(other.path) as again:
        again.remotes.remove("origin")
        assert contents(again, after.id) == files
        assert again.fsck().clean


def test_two_remotes_have_each_what_was_pushed_to_it(
    repository: Repository, other: Repository, url: str, tmp_path: Path
) -> None:
    files = {"a": noise(50_000), "b": noise(300)}
    saved = save(repository, files, branch="main")
    backup = f"file://{tmp_path}/backup"
    for name, place in (("origin", url), ("backup", backup)):
        repository.remotes.add(name, place)
        assert repository.remotes.push(name, branches(repository)).sent > 50_000
    more = save(repository, {**files, "c": noise(5000)}, branch="main", parents=[saved.id])
    for name in ("backup", "origin"):
        assert repository.remotes.push(name, branches(repository)).sent < 12_000
        assert not repository.remotes.fsck(name).harm
    (tmp_path / "bucket").rename(tmp_path / "gone")
    other.remotes.add("backup", backup)
    other.remotes.fetch("backup")
    assert contents(other, more.id) == contents(repository, more.id)
    assert contents(other, saved.id) == files


def test_a_restore_of_an_operation_leaves_nothing_of_what_was_done_since(repository: Repository, url: str) -> None:
    first = save(repository, {"a": b"one"}, branch="main")
    repository.remotes.add("origin", url)
    repository.remotes.push("origin", {"branch/main": first.id})
    (then, _), *_ = repository.remotes.operations("origin", 1)
    second = save(repository, {"a": b"two"}, parents=[first.id], branch="main")
    side = save(repository, {"a": b"side"}, branch="side")
    repository.remotes.push("origin", {"branch/main": second.id, "branch/side": side.id})
    report = repository.remotes.restore_operation("origin", then.hex())
    assert report.refs == {"branch/main": first.id, "branch/side": None}
    assert repository.remotes.known("origin").refs == {"branch/main": first.id}
    assert not repository.remotes.fsck("origin").harm
    repository.remotes.undo("origin")
    assert repository.remotes.known("origin").refs == {"branch/main": second.id, "branch/side": side.id}
    with pytest.raises(UnknownNameError):
        repository.remotes.restore_operation("origin", "00000000")
