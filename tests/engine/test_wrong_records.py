"""Records that no accident makes: a sentence for whoever reads them, found by fsck, left alone by repair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from storekit import contents, save

from ijfs_engine import CorruptError, Entry, IjfsError, Repository, export_tree
from ijfs_engine.format.frames import FrameKind, object_id
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
    "a device of 33 bits": lambda f, d: (replace(f, kind="c", content=None, rdev=1 << 32), d),
    "a target that no path can be": lambda f, d: (replace(f, kind="l", content=None, target=b"x" * 4096), d),
    "a name that no directory takes": lambda f, d: (replace(f, name=b"f" * 256), d),
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
    with pytest.raises(CorruptError, match=r"b'f'|b'sub'|b'\.\.'|a name of 256 bytes"):
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


EMPTY_TREE = object_id(FrameKind.TREE, encode_tree(Tree(())))
LINKS: dict[str, Callable[[Entry], Entry]] = {
    "another time": lambda entry: replace(entry, mtime_ns=5),
    "another kind": lambda entry: replace(entry, kind="p", content=None, size=0),
    "other bytes": lambda entry: replace(entry, content=None, size=0),
    "a directory": lambda entry: replace(entry, kind="d", content=EMPTY_TREE, size=0),
}


@pytest.mark.parametrize("what", LINKS)
def test_links_between_unequal_names_are_found_across_directories(repository: Repository, what: str) -> None:
    made = save(repository, {"a": b"linked"}, branch="one")
    entry = replace(repository.store.tree(made.root).entries[0], link=7)

    def snapshot(branch: str, other: Entry) -> bytes:
        with repository.session() as session:
            session.put_object(FrameKind.TREE, encode_tree(Tree(())))
            inner = session.put_object(FrameKind.TREE, encode_tree(Tree((replace(other, name=b"b"),))))
            sub = Entry(b"sub", "d", 0o755, 0, 0, 0, content=inner)
            return session.commit_snapshot(
                session.put_object(FrameKind.TREE, encode_tree(Tree((entry, sub)))), branch=branch
            ).id

    snapshot("good", entry)
    assert repository.fsck().clean
    wrong = snapshot("wrong", LINKS[what](entry))
    (damage,) = repository.fsck(data=False).damage
    assert (damage.what, damage.snapshots) == ("content", (wrong,))
    assert "link number" in damage.message


def test_what_is_saved_as_linked_is_linked(repository: Repository) -> None:
    """Entries that a walk of files in use took for one file, and that changed between its two looks."""
    one = Entry(b"", "f", 0o644, 0, 0, 5, link=1)
    with repository.begin() as writer:
        entries = [("a", one, b"x"), ("b", one, b"x"), ("d/c", one, b"other"), ("d/d", one, b"other"), ("e", one, b"")]
        writer.add_entries(entries)
        made = writer.commit()
    reader = repository.reader()
    links = {name: reader.lookup(made.root, name).link for name, *_ in entries}
    assert links["a"] == links["b"] != 0
    assert links["d/c"] == links["d/d"] != 0
    assert len({links["a"], links["d/c"], links["e"]}) == 3
    assert repository.fsck().clean


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
