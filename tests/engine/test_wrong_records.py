"""Records that no accident makes: a sentence for whoever reads them, found by fsck, left alone by repair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from storekit import contents, save

from ijfs_engine import CorruptError, Entry, IjfsError, Repository, export_tree
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import Tree, encode_tree

Change = Callable[[Entry, Entry], tuple[Entry, Entry]]
replace = msgspec.structs.replace

UNREADABLE: dict[str, Change] = {
    "mode": lambda f, d: (replace(f, mode=0o177777), d),
    "mode of a directory": lambda f, d: (f, replace(d, mode=1 << 40)),
    "owner": lambda f, d: (replace(f, uid=1 << 40), d),
    "group": lambda f, d: (f, replace(d, gid=-5)),
    "size below 0": lambda f, d: (replace(f, size=-5), d),
    "device": lambda f, d: (replace(f, kind="c", content=None, rdev=-1), d),
    "NUL in a target": lambda f, d: (replace(f, kind="l", content=None, target=b"a\0b"), d),
    "no target": lambda f, d: (replace(f, kind="l", content=None), d),
    "NUL in an attribute": lambda f, d: (replace(f, xattrs=((b"user.a\0b", b"x"),)), d),
    "a link with bytes": lambda f, d: (replace(f, kind="l", target=b"x"), d),
    "a directory without a tree": lambda f, d: (f, replace(d, content=None)),
    "a name up": lambda f, d: (replace(f, name=b".."), d),
}
MISTOLD: dict[str, Change] = {
    "size of a chunk": lambda f, d: (replace(f, size=100), d),
    "size of nothing": lambda f, d: (replace(f, size=1 << 50, content=None), d),
    "a tree for a file": lambda f, d: (replace(f, content=d.content), d),
    "a chunk for a directory": lambda f, d: (f, replace(d, content=f.content)),
}


def hostile(repository: Repository, change: Change) -> bytes:
    """A snapshot whose root was changed; its id."""
    with repository.session() as session:
        inner = save(repository, {"g": b"inner"}, branch="inner")
        leaf = repository.store.tree(inner.root).entries[0]
        f = replace(leaf, name=b"f")
        d = Entry(b"sub", "d", 0o755, 0, 0, 0, content=inner.root)
        changed = sorted(change(f, d), key=lambda entry: entry.name)
        root = session.put_object(FrameKind.TREE, encode_tree(Tree(tuple(changed))))
        return session.commit_snapshot(root, branch="main").id


@pytest.mark.parametrize("what", [*UNREADABLE, *MISTOLD])
def test_a_record_that_cannot_be_is_a_sentence_and_found(repository: Repository, tmp_path: Path, what: str) -> None:
    ident = hostile(repository, {**UNREADABLE, **MISTOLD}[what])
    good = save(repository, {"f": b"good"}, branch="good")
    for data in (True, False):
        damage = repository.fsck(data=data).damage
        assert {finding.what for finding in damage} == {"content"}
        assert all(ident in finding.snapshots for finding in damage)
    reader = repository.reader()
    with pytest.raises(IjfsError):
        export_tree(reader, repository.snapshot(ident).root, tmp_path / "out")
    assert {one.what for one in repository.fsck(repair=True).damage} == {"content"}
    assert contents(repository, good.id) == {"f": b"good"}
    repository.remove(ident)
    assert repository.fsck().clean
    repository.gc()


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_entry_that_no_kernel_takes_is_named(repository: Repository, what: str) -> None:
    ident = hostile(repository, UNREADABLE[what])
    with pytest.raises(CorruptError, match=r"b'f'|b'sub'|b'\.\.'"):
        repository.store.tree(repository.snapshot(ident).root)


def test_a_file_whose_leaves_are_longer_is_found(repository: Repository) -> None:
    """Two entries for the same bytes, of which one lies."""
    made = save(repository, {"a": bytes(range(256)) * 40}, branch="one")
    (entry,) = repository.store.tree(made.root).entries
    with repository.session() as session:
        lie = Tree((entry, replace(entry, name=b"b", size=entry.size - 1)))
        root = session.put_object(FrameKind.TREE, encode_tree(lie))
        session.commit_snapshot(root, branch="two")
    assert {one.what for one in repository.fsck().damage} == {"content"}


def test_more_paths_than_anyone_waits_for(repository: Repository) -> None:
    """20^9 paths in some kB of trees, and as deep as 1,000 directories: fsck and du end."""
    with repository.session() as session:
        inner = save(repository, {"g": b"gg"}, branch="inner")
        cell = inner.root
        for _ in range(9):
            entries = tuple(Entry(b"%02d" % n, "d", 0o755, 0, 0, 0, content=cell) for n in range(20))
            cell = session.put_object(FrameKind.TREE, encode_tree(Tree(entries)))
        for _ in range(1000):
            cell = session.put_object(
                FrameKind.TREE, encode_tree(Tree((Entry(b"d", "d", 0o755, 0, 0, 0, content=cell),)))
            )
        snapshot = session.commit_snapshot(cell, branch="main")
    assert repository.fsck().clean
    assert repository.du([snapshot.id]).total.logical == 2 * 20**9
    broken = repository.store.tree(inner.root).entries[0].content
    repository.index.write(lambda update: update.delete(b"chunks", broken or b""))
    damage = repository.fsck().damage
    assert {finding.id for finding in damage} == {broken}
    assert snapshot.id in damage[0].snapshots
