"""The same promises with a store that speaks S3: put-if-absent, ranges, lists, a gateway that dies and comes back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from remote_store import RGW, start

from ijfs.live.uploads import followed, pusher
from ijfs_engine import IjfsError, RemoteError, Repository, import_directory, wrap_for_passphrase
from ijfs_engine.remote.bucket import Bucket

pytestmark = pytest.mark.rgw

RNG = random.Random(5)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.init(tmp_path / "repository")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    (path / "large").write_bytes(RNG.randbytes(20 << 20))
    (path / "small").write_text("hello")
    return path


def pushed(repository: Repository, work: Path, url: str) -> bytes:
    saved = import_directory(repository, work, branch="main")
    if not repository.remotes.all():
        repository.remotes.add("origin", url)
    repository.remotes.push("origin", {"branch/main": saved.id})
    return saved.id


def read_all(repository: Repository, ident: bytes, name: str) -> bytes:
    reader = repository.reader()
    entry = reader.lookup(repository.snapshot(ident).root, f"files/{name}")
    return reader.open(entry).read(0, entry.size)


def test_an_encrypted_tree_is_pushed_cloned_and_read(
    work: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IJFS_PASSPHRASE", "correct horse")
    monkeypatch.setenv("IJFS_KEY_TTL_S", "0")
    (work / "small").write_text("a marker in plain")
    way = lambda ring: wrap_for_passphrase(ring, "main", "correct horse")  # noqa: E731
    with Repository.init(tmp_path / "sealed", way_in=way) as sealed:
        ident = pushed(sealed, work, url)
        assert not sealed.remotes.fsck("origin").harm
    with Repository.init_like(tmp_path / "clone", url) as clone:
        clone.remotes.add("origin", url)
        clone.remotes.fetch("origin")
        assert read_all(clone, ident, "large") == (work / "large").read_bytes()
        clone.remotes.pull("origin")
        assert clone.fsck().clean
    bucket = Bucket.open(url)
    assert not [one.path for one in bucket.list("") if b"a marker in plain" in bucket.get(one.path)]
    with Repository.init(tmp_path / "plain") as plain, pytest.raises(IjfsError, match="is encrypted"):
        pushed(plain, work, url)


def test_one_of_many_that_put_at_once_is_first(url: str) -> None:
    bucket = Bucket.open(url)
    won: list[bytes] = []

    def put(data: bytes) -> None:
        if bucket.put_new("one", data):
            won.append(data)

    threads = [threading.Thread(target=put, args=(bytes([n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [bucket.get("one")]


def test_push_fetch_and_read(repository: Repository, work: Path, url: str, tmp_path: Path) -> None:
    ident = pushed(repository, work, url)
    with Repository.init(tmp_path / "other") as other:
        other.remotes.add("origin", url)
        assert other.remotes.fetch("origin").new == 1
        assert read_all(other, ident, "large") == (work / "large").read_bytes()
        other.remotes.pull("origin")
        assert other.fsck().clean
    assert not repository.remotes.fsck("origin").harm
    assert repository.remotes.gc("origin").packs_removed == 0


def test_a_gateway_that_dies_under_a_push_costs_time(repository: Repository, work: Path, url: str) -> None:
    (work / "more").write_bytes(RNG.randbytes(100 << 20))
    killed = threading.Event()

    def kill_and_start() -> None:
        subprocess.run([sys.executable, RGW, "kill"], check=True, timeout=60)
        os.environ.update(start())
        killed.set()

    thread = threading.Timer(0.3, kill_and_start)
    thread.start()
    try:
        pushed(repository, work, url)
    finally:
        thread.join()
    assert killed.is_set()
    assert not repository.remotes.fsck("origin").harm


def test_a_wrong_key_is_said_in_a_sentence(
    repository: Repository, work: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteError, match="the store says no"):
        pushed(repository, work, url)
    monkeypatch.undo()
    with pytest.raises(RemoteError, match="no such bucket"):
        Bucket.open("s3://there-is-none").get("format")


def test_what_is_saved_while_the_gateway_is_down_arrives_when_it_is_back(
    repository: Repository, work: Path, url: str
) -> None:
    first = pushed(repository, work, url)
    (work / "small").write_text("changed")
    saved = import_directory(repository, work, parents=[first], branch="main").id
    followed.follow(repository.path, "main", "origin")
    subprocess.run([sys.executable, RGW, "kill"], check=True, timeout=60)
    why: list[str] = []

    def pause(seconds: float) -> None:
        why.extend(one.why for one in followed.waiting(repository))
        os.environ.update(start())

    pusher.run(repository.path, pause)
    assert len(why) == 1
    assert "times in a row" in why[0]
    assert followed.waiting(repository) == []
    repository.remotes.fetch("origin")
    assert repository.remotes.known("origin").refs == {"branch/main": saved}
    assert not repository.remotes.fsck("origin").harm
