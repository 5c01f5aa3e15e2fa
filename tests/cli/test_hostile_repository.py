"""Records and trees that a stranger could hand over: every verb that looks ends with an answer or a sentence.

tests/engine/test_hostile_trees.py has what exports write, test_many_paths.py trees that nobody can walk.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from calls import Ijfs

from ijfs_engine import Entry, Repository
from ijfs_engine.format.frames import FrameKind, object_id
from ijfs_engine.format.records import Tree
from ijfs_engine.storage import session as sessions
from ijfs_engine.storage.session import Session

Record = dict[str, Any]
ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\n\u202e\x9b31m"

VERBS = (
    ["log"], ["log", "--json"], ["tree"], ["tree", "--json"], ["du"], ["stats"], ["base", "list"], ["branch"], ["fsck"],
    ["fsck", "--quick"], ["gc", "--dry-run"], ["prune", "--dry-run", "--keep-last", "1"],
)  # fmt: skip
"""Of a whole repository."""
OF_ONE = (
    ["-v", "show"], ["--json", "show"], ["ls", "-lR"], ["--json", "ls", "-R"], ["du"],
)  # fmt: skip

NESTED = b"\x81\xa1a" * 3000 + b"\x80"
METAS: list[Any] = [
    {},
    {"spec": 7},
    {"spec": {"argv": 5, "name": ["x"], "cwd": None}},
    {"spec": {"argv": [b"\xff", None, {"a": 1}], "name": ESCAPES, "cwd": ESCAPES}, "frozen_s": float("nan")},
    {"spec": {"argv": "text", "name": "x" * 100_000}, "environment": [1], "frozen_s": -1e308},
    {"spec": {}, "environment": {"kernel": ESCAPES, "python": {"a": [1]}}, "base": {"snapshot": "../../x"}},
    {"base": {"name": 5, "origin": b"x"}},
    {"base": {"name": ESCAPES, "origin": ESCAPES, "files": -1}},
    {"base": [1], "gpu": {"devices": 3}, "guest": 5, "volumes": "none", "network": {"settings": {"/etc/x": "y"}}},
    {"a": {b"bytes": 1, 7: 2, None: 3, 1.5: 4, True: 5}},
    {"when": msgspec.msgpack.Ext(5, b"ext"), "b": b"\x00\xff", "n": (1 << 64) - 1},
    {"imported": ESCAPES, "source": {"path": [1, 2]}},
    msgspec.Raw(NESTED),
    msgspec.Raw(b"\x81\xa1a\x82\x80\x01\x81\xa1b\x01\x02"),
]
"""What a record may say of its program; some of it as bytes."""


def hostile(repository: Repository, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> bytes:
    """Commit a snapshot whose record is not looked at; its id."""
    with repository.session() as session, monkeypatch.context() as patch:
        root = fields.pop("root", None) or put_tree(session, [])
        body = {"root": root, "parents": (), "created_ns": 1, "message": "", "meta": {}, "size": None, "added": None}
        data = msgspec.msgpack.encode(list({**body, **fields}.values()))
        patch.setattr(sessions, "encode_snapshot", lambda snapshot: data)
        session.commit_snapshot(root)
        return object_id(FrameKind.SNAPSHOT, data)


def put_tree(session: Session, entries: list[Entry]) -> bytes:
    return session.put_object(FrameKind.TREE, msgspec.msgpack.encode(Tree(tuple(entries)), order="deterministic"))


def check(ijfs: Ijfs, *argv: str) -> None:
    answer = ijfs(*argv)
    said = answer.out + answer.err
    assert answer.code in (0, 1, 3), (argv, answer)
    for never in ("Traceback", "unexpected", "InternalError"):
        assert never not in said, (argv, answer)
    if "--json" not in argv:
        assert not any(char in said for char in "\x1b\x07\x9b\r"), (argv, said)


def check_all(ijfs: Ijfs, repository: Path, idents: list[bytes]) -> None:
    for verb in VERBS:
        check(ijfs, "-r", str(repository), *verb)
    for ident in idents:
        for verb in OF_ONE:
            check(ijfs, "-r", str(repository), *verb, ident.hex())
        check(ijfs, "-r", str(repository), "diff", idents[0].hex(), ident.hex())


def test_whatever_a_record_says_of_its_program(repo: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.open(repo) as repository:
        idents = [hostile(repository, monkeypatch, meta=meta) for meta in METAS]
    check_all(ijfs, repo, idents)


def test_whatever_a_record_says_of_itself(repo: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch) -> None:
    with Repository.open(repo) as repository:
        good = hostile(repository, monkeypatch, message="good")
        idents = [good]
        for fields in (
            {"created_ns": -(1 << 63)},
            {"created_ns": (1 << 64) - 1},
            {"message": ESCAPES * 1000},
            {"message": "x" * 1_000_000},
            {"size": -1, "added": -5},
            {"size": (1 << 64) - 1, "added": (1 << 64) - 1},
            {"parents": (good, good, bytes(32))},
            {"parents": (b"short",)},
            {"parents": tuple(random.Random(1).randbytes(32) for _ in range(3000))},
            {"root": good},
            {"root": bytes(32)},
            {"message": 5},
            {"created_ns": 1.5},
        ):
            idents.append(hostile(repository, monkeypatch, **fields))
    check_all(ijfs, repo, idents)


def _trees(session: Session) -> dict[str, bytes]:
    """Roots of snapshots with something impossible or odd at each of its places."""
    ordinary: Record = {"name": b"f", "kind": "f", "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0}
    inner = put_tree(session, [Entry(**ordinary)])
    chosen: dict[str, list[Entry]] = {
        name: [Entry(**{**ordinary, **fields})]
        for name, fields in {
            "time": {"mtime_ns": (1 << 63) - 1},
            "early": {"mtime_ns": -(1 << 63)},
            "name": {"name": os.fsencode(ESCAPES).replace(b"/", b"")},
            "bytes": {"name": b"\xff\xfe\x80"},
            "long": {"name": b"n" * 5000},
            "target": {"kind": "l", "target": os.fsencode(ESCAPES) * 1000},
            "owner": {"uid": 1 << 40},
            "size": {"size": 1 << 62},
            "tree": {"kind": "d", "content": bytes(32)},
            "none": {"kind": "d"},
            "chunk": {"content": inner, "size": 5},
            "device": {"kind": "b", "rdev": (1 << 64) - 1},
            "attributes": {"xattrs": tuple((b"user.%d" % n, b"v" * 1000) for n in range(200))},
        }.items()
    }
    chosen["unsorted"] = [Entry(**{**ordinary, "name": name}) for name in (b"b", b"a", b"a")]
    chosen["many"] = [Entry(**{**ordinary, "name": b"%06d" % n}) for n in range(2000)]
    roots = {name: put_tree(session, entries) for name, entries in chosen.items()}
    directory = {**ordinary, "kind": "d", "mode": 0o755}
    for top in ("files", "images", "shm", "dev"):
        below = [Entry(**{**directory, "name": b"x", "content": roots["name"]})]
        below += [Entry(**{**ordinary, "name": name}) for name in (b"y-\x1b[2J", b"z.img")]
        images = [
            Entry(**{**ordinary, "name": name, "size": 3, "content": None})
            for name in (b"core-1.img", b"inventory.img", b"pagemap-1.img", b"pages-1.img", b"pstree.img")
        ] if top == "images" else below  # fmt: skip
        inside = put_tree(session, images)
        roots[top] = put_tree(session, [Entry(**{**directory, "name": top.encode(), "content": inside})])
    deep = inner
    for _ in range(1200):
        deep = put_tree(session, [Entry(**{**directory, "name": b"dd", "content": deep})])
    return {**roots, "deep": deep}


def test_whatever_trees_hold(repo: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Repository.open(repo) as repository:
        with repository.session() as session:
            roots = _trees(session)
            session.commit_snapshot(put_tree(session, []))
        idents = [hostile(repository, monkeypatch, root=root, message=name) for name, root in roots.items()]
    check_all(ijfs, repo, idents)
    (tmp_path / "outside").mkdir()
    for number, ident in enumerate(idents):
        check(ijfs, "-r", str(repo), "export", ident.hex(), str(tmp_path / "outside" / str(number)))
        check(ijfs, "-r", str(repo), "cp", f"{ident.hex()}:", str(tmp_path / "outside" / f"{number}-copy"))
        os.system(f"rm -rf {tmp_path}/outside/*")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.root
def test_a_mount_of_whatever_trees_hold_answers_on(
    repo: Path, ijfs: Ijfs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there or not ours: the mount was not tried")
    with Repository.open(repo) as repository:
        with repository.session() as session:
            roots = _trees(session)
            session.commit_snapshot(put_tree(session, []))
        idents = [hostile(repository, monkeypatch, root=root, message=name) for name, root in roots.items()]
        readable = [hostile(repository, monkeypatch, meta=meta) for meta in METAS if isinstance(meta, dict)]
        idents += [*readable, *(hostile(repository, monkeypatch, meta=meta) for meta in METAS[-2:])]
        good = hostile(repository, monkeypatch, root=roots["many"], created_ns=2)
    mount = tmp_path / "mount"
    mount.mkdir()
    assert ijfs("mount", mount).code == 0
    try:
        for ident in idents:
            _look_through(os.fsencode(mount / "snapshots" / ident.hex()))
        assert len(os.listdir(mount / "snapshots" / good.hex())) == 2001
        told = [json.loads((mount / "snapshots" / ident.hex() / "meta.json").read_text()) for ident in readable]
        assert [record["id"] for record in told] == [ident.hex() for ident in readable]
    finally:
        assert ijfs("umount", mount).code == 0


def _look_through(top: bytes) -> None:
    """Everything that can be asked of a directory and of 300 names in it, some levels deep."""
    for folder, directories, files in os.walk(top):
        if folder.count(b"/") > top.count(b"/") + 20:
            directories.clear()
        for name in (files + directories)[:300]:
            path = os.path.join(folder, name)
            for ask in (os.lstat, os.listxattr, os.readlink, _read):
                with contextlib.suppress(OSError):
                    ask(path)


def _read(path: bytes) -> bytes:
    """Not of a fifo or device, which an open may wait for."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return b""
    with open(path, "rb") as file:
        return file.read(1 << 20)
