"""Trees in object stores stay readable: `golden/tree` was written by the first version of the layout, and never is
again.

It has packs of both kinds, operations, two heads that became one, and so a manifest. A repository of format 1 pushes as
it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from storekit import contents, save
from test_golden import FILES, GOLDEN, NEAR, mended

from ijfs_engine import Repository
from ijfs_engine.remote import push
from ijfs_engine.remote.bucket import Bucket
from ijfs_engine.remote.oplog import OpLog

TREE = Path(__file__).parent / "golden" / "tree"


def make(path: Path, work: Path) -> None:
    """How it was made."""
    push.whoami = lambda: "somebody@somewhere"  # type: ignore[attr-defined]
    os.uname = lambda: SimpleNamespace(nodename="somewhere")  # type: ignore[assignment,return-value]
    url = f"file://{path}"
    hosts = [Repository.init(work / name) for name in ("one", "two")]
    for host in hosts:
        host.remotes.add("origin", url)
    first = save(hosts[0], FILES, branch="main", message="first")
    hosts[0].remotes.push("origin", {"branch/main": first.id, "tag/v1": first.id})
    hosts[1].remotes.pull("origin")
    before = sorted((path / "heads").iterdir())
    for host, near in zip(hosts, (NEAR, NEAR[::-1]), strict=True):
        for head in (path / "heads").iterdir():
            if head not in before:
                shutil.move(head, work / head.name)  # as if neither saw the other
        for head in before:
            head.touch()
        saved = save(host, {**FILES, "near": near}, branch="main", message="apart", parents=[first.id])
        host.remotes.push("origin", {"branch/main": saved.id})
    for head in work.glob("?" * 64):
        shutil.move(head, path / "heads" / head.name)
    log = OpLog(Bucket.open(url))
    log.refresh()
    log.merge()


@pytest.fixture
def other(tmp_path: Path) -> Repository:
    shutil.copytree(TREE, tmp_path / "tree")
    made = Repository.init(tmp_path / "other")
    made.remotes.add("origin", f"file://{tmp_path}/tree")
    return made


def test_a_tree_of_the_first_layout_is_read(other: Repository) -> None:
    with other:
        assert other.remotes.fetch("origin").new == 3
        refs = other.remotes.known("origin").refs
        assert {name.partition("@")[0] for name in refs} == {"branch/main", "tag/v1"}
        assert contents(other, refs["tag/v1"]) == FILES
        heads = [contents(other, ident) for name, ident in refs.items() if name.startswith("branch/")]
        assert sorted(one["near"] for one in heads) == sorted([NEAR, NEAR[::-1]])
        assert not other.remotes.fsck("origin").harm
        saved = save(other, {"more": b"more"}, branch="more")
        other.remotes.push("origin", {"branch/more": saved.id})
        assert other.remotes.fetch("origin").snapshots == 4


def test_a_repository_of_format_1_pushes_as_it_is(tmp_path: Path) -> None:
    with mended(GOLDEN, tmp_path / "repository") as repository:
        before = fingerprint(repository.path)
        refs = {f"branch/{name}": ident for name, ident in repository.refs.branches().items()}
        repository.remotes.add("origin", f"file://{tmp_path}/bucket")
        repository.remotes.push("origin", refs)
        assert fingerprint(repository.path) == before
        with Repository.init(tmp_path / "reader") as reader:
            reader.remotes.add("origin", f"file://{tmp_path}/bucket")
            reader.remotes.fetch("origin")
            for ident in refs.values():
                assert contents(reader, ident) == contents(repository, ident)


def fingerprint(path: Path) -> dict[str, str]:
    """Of what a repository of format 1 is: everything but what is known of remotes, and the index."""
    files = [path / "format", path / "journal", *sorted((path / "packs").iterdir())]
    return {file.name: hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}
