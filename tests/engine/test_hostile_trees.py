"""A stored tree that somebody else made cannot make an export write anywhere but into its target."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ijfs_engine import CorruptError, Entry, IjfsError, Repository, StorageError, export_tree, import_directory
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import Tree
from ijfs_engine.storage.session import Session
from tests.engine import storekit

MIB = 1 << 20
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")


class Box:
    """A directory with a target to export into, and things beside it that must stay as they are."""

    def __init__(self, top: Path) -> None:
        self.target = top / "box" / "target"
        self.outside = top / "box" / "outside"
        self.outside.mkdir(parents=True)
        (self.outside / "file").write_bytes(b"as it was")
        (self.outside / "file").chmod(0o640)
        (self.outside / "directory").mkdir(mode=0o750)

    def seen(self) -> dict[str, tuple[object, ...]]:
        """All that is not in the target, as stat and read see it."""
        found: dict[str, tuple[object, ...]] = {}
        for folder, directories, files in os.walk(self.outside.parent):
            if folder == str(self.outside.parent):
                directories[:] = [name for name in directories if name != "target"]
            for name in (*directories, *files):
                path = Path(folder, name)
                info = path.lstat()
                data = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
                found[str(path)] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_nlink, data)
        return found


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def put_tree(session: Session, entries: Sequence[Entry]) -> bytes:
    """A Tree as it comes: neither sorted nor looked at."""
    return session.put_object(FrameKind.TREE, msgspec.msgpack.encode(Tree(tuple(entries)), order="deterministic"))


def directory(name: bytes, content: bytes | None, **fields: int) -> Entry:
    return msgspec.structs.replace(Entry(name, "d", 0o755, 0, 0, 0, content=content), **fields)


def symlink(name: bytes, target: bytes, **fields: int) -> Entry:
    return msgspec.structs.replace(Entry(name, "l", 0o777, 0, 0, 0, size=len(target), target=target), **fields)


def file(session: Session, name: bytes, data: bytes, **fields: int) -> Entry:
    content = storekit.put(session, data) if data else None
    return msgspec.structs.replace(Entry(name, "f", 0o644, 0, 0, 0, size=len(data), content=content), **fields)


def test_a_directory_that_claims_to_be_a_symlink_by_its_link_number_is_a_directory(
    repository: Repository, box: Box
) -> None:
    """What is in it was made through the symlink, as root and setuid."""
    with repository.session() as session:
        inner = put_tree(session, [file(session, b"pwned", b"#!/bin/sh\n", mode=0o4755)])
        root = put_tree(session, [symlink(b"a", os.fsencode(box.outside), link=7), directory(b"b", inner, link=7)])
        snapshot = session.commit_snapshot(root)
    before = box.seen()
    export_tree(repository.reader(), snapshot.root, box.target)
    assert box.seen() == before
    assert (box.target / "b" / "pwned").read_bytes() == b"#!/bin/sh\n"
    assert (box.target / "a").is_symlink()


def test_files_that_share_a_link_number_and_nothing_else_are_files_of_their_own(
    repository: Repository, box: Box
) -> None:
    with repository.session() as session:
        root = put_tree(
            session,
            [
                file(session, b"1", b"one", link=3),
                file(session, b"2", b"two", link=3),
                file(session, b"3", b"one", link=3),
                symlink(b"4", b"1", link=3),
            ],
        )
        snapshot = session.commit_snapshot(root)
    export_tree(repository.reader(), snapshot.root, box.target)
    assert [(box.target / name).read_bytes() for name in "1234"] == [b"one", b"two", b"one", b"one"]
    assert (box.target / "1").samefile(box.target / "3")
    assert not (box.target / "1").samefile(box.target / "2")


_names = st.sampled_from([b"a", b"b", b"c", b"A", b"..", b".", b"", b"a/b", b"a\0b", b"n" * 300])
_numbers = st.sampled_from([0, 0, 1, 2])
_odd = st.sampled_from([0, 1, -1, 1 << 40, 0o7777])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_tree_changes_anything_outside_the_target(
    data: st.DataObject, repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = Box(tmp_path_factory.mktemp("box"))
    targets = st.sampled_from(
        [b"..", b"../outside", b"../../outside", b"a", b"b", b"./c", b"/", b"", b"\0", os.fsencode(box.outside)]
        + [os.fsencode(box.outside / name) for name in ("file", "directory", "new")]
    )

    def entry(session: Session, name: bytes, depth: int) -> Entry:
        kind = data.draw(st.sampled_from("ffllldddpscb"))
        fields = {"link": data.draw(_numbers), "mode": data.draw(st.sampled_from([0o755, 0, 0o4755, 1 << 40]))}
        if data.draw(st.integers(0, 9)) == 0:
            fields |= {"uid": data.draw(_odd), "mtime_ns": data.draw(st.sampled_from([0, -5, (1 << 63) - 1]))}
        if kind == "l":
            return symlink(name, data.draw(targets), **fields)
        if kind == "f":
            return file(session, name, data.draw(st.sampled_from([b"", b"x", b"y" * 5000])), **fields)
        if kind == "d":
            return directory(name, tree(session, depth + 1) if depth < 3 else None, **fields)
        rdev = data.draw(st.sampled_from([0, os.makedev(1, 3), -1, 1 << 70]))
        return Entry(name, kind, fields["mode"], 0, 0, 0, rdev=min(rdev, (1 << 64) - 1), link=fields["link"])

    def tree(session: Session, depth: int) -> bytes:
        names = data.draw(st.lists(_names, max_size=4))
        if data.draw(st.integers(0, 9)):  # most are what the parser lets through, so that something is exported
            names = sorted({name for name in names if name in (b"a", b"b", b"c", b"A", b"n" * 300)})
        return put_tree(session, [entry(session, name, depth) for name in names])

    with repository.session() as session:
        root = tree(session, 0)
        snapshot = session.commit_snapshot(root)
    before = box.seen()
    outcome: Exception | None = None
    try:
        export_tree(
            repository.reader(), snapshot.root, box.target, privileged=data.draw(st.sampled_from([None, False]))
        )
    except IjfsError as error:
        outcome = error
    assert box.seen() == before, outcome


@pytest.mark.root
@as_root
def test_an_export_without_privileges_makes_nothing_that_an_ordinary_user_could_not(
    repository: Repository, box: Box
) -> None:
    with repository.session() as session:
        root = put_tree(
            session,
            [
                Entry(b"device", "c", 0o666, 0, 0, 0, rdev=os.makedev(1, 3)),
                Entry(b"fifo", "p", 0o6666, 4, 4, 0),
                file(session, b"setuid", b"x", mode=0o6755, uid=1234),
                msgspec.structs.replace(
                    file(session, b"trusted", b"y"), xattrs=((b"trusted.x", b"1"), (b"user.x", b"2"))
                ),
            ],
        )
        snapshot = session.commit_snapshot(root)
    export_tree(repository.reader(), snapshot.root, box.target, privileged=False)
    assert sorted(os.listdir(box.target)) == ["fifo", "setuid", "trusted"]
    assert {path.lstat().st_uid for path in box.target.iterdir()} == {os.geteuid()}
    assert [path.lstat().st_mode & 0o7777 for path in sorted(box.target.iterdir())] == [0o666, 0o755, 0o644]
    assert os.listxattr(box.target / "trusted") == ["user.x"]


# --- Long paths


def _deep(top: Path, depth: int) -> Iterator[int]:
    """Descriptors of directories that lie in one another, each 200 bytes longer."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(b"d" * 200, dir_fd=here)
        below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    yield here
    os.close(here)


def test_paths_longer_than_the_system_takes_come_in_and_out(repository: Repository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    large = random.Random(3).randbytes(5 * MIB)
    for here in _deep(source, 40):
        for name, content in (("small", b"deep down"), ("large", large), ("empty", b"")):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=here)
            os.write(fd, content)
            os.setxattr(fd, "user.where", b"below")
            os.close(fd)
        os.symlink("small", "link", dir_fd=here)
        os.mkfifo("fifo", dir_fd=here)
        os.link("small", "again", src_dir_fd=here, dst_dir_fd=here)
    snapshot = import_directory(repository, source)
    export_tree(repository.reader(), snapshot.root, tmp_path / "out")
    listed = subprocess.run(
        ["find", ".", "-printf", "%M %U %G %T@ %s %n %l %f\n"], cwd=source, capture_output=True, text=True, check=True
    ).stdout
    again = subprocess.run(
        ["find", ".", "-printf", "%M %U %G %T@ %s %n %l %f\n"],
        cwd=tmp_path / "out" / "files",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # The top directory's own time is not kept.
    assert sorted(listed.splitlines()[1:]) == sorted(again.splitlines()[1:])
    found = subprocess.run(["grep", "-r", "-c", "deep down", "."], cwd=tmp_path / "out", capture_output=True, text=True)
    assert found.stdout.count(":1\n") == 2
    for top in (source, tmp_path / "out"):
        subprocess.run(["rm", "-rf", str(top)], check=True)


# --- An export that ends early


def _stored(repository: Repository, tmp_path: Path) -> tuple[bytes, dict[str, bytes]]:
    source = tmp_path / "source"
    source.mkdir()
    noise = random.Random(5)
    contents = {f"{number:02}": noise.randbytes(9 * MIB if number % 3 == 0 else 20_000) for number in range(8)}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    snapshot = import_directory(repository, source)
    return repository.reader().lookup(snapshot.root, "files").content or b"", contents


def _only_whole(target: Path, contents: dict[str, bytes]) -> int:
    """How many files are there; each is whole, and nothing else is there."""
    for path in target.iterdir():
        assert path.read_bytes() == contents[path.name], path
    return len(list(target.iterdir()))


def test_a_damaged_chunk_leaves_whole_files_only_and_the_message_says_so(
    repository: Repository, tmp_path: Path
) -> None:
    tree, contents = _stored(repository, tmp_path)
    needle = contents["03"][5 * MIB : 5 * MIB + 1000]
    for pack in (repository.path / "packs").rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        if (at := data.find(needle)) >= 0:
            data[at + 500] ^= 1
            pack.write_bytes(data)
    with pytest.raises(CorruptError, match=r"not complete: \d+ of its files, each of them whole, are in"):
        export_tree(repository.reader(), tree, tmp_path / "out")
    assert _only_whole(tmp_path / "out", contents) < len(contents)
    assert not (tmp_path / "out" / "03").exists()


def test_a_disk_that_fills_up_leaves_whole_files_only(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, contents = _stored(repository, tmp_path)
    written = 0
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 15 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:100_000], offset)

    monkeypatch.setattr("ijfs_engine.read.export.os.pwrite", full)
    with pytest.raises(StorageError, match=r"No space left.*not complete"):
        export_tree(repository.reader(), tree, tmp_path / "out")
    monkeypatch.undo()
    assert _only_whole(tmp_path / "out", contents) < len(contents)


def test_an_export_that_wrote_no_file_leaves_no_directory(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    (source / "one").write_bytes(b"1" * 1000)

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = import_directory(repository, source).root
    with monkeypatch.context() as patch:
        patch.setattr("ijfs_engine.read.export.os.pwrite", full)
        with pytest.raises(StorageError, match="no file of it is in"):
            export_tree(repository.reader(), root, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    export_tree(repository.reader(), root, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out" / "files")) == ["empty", "one"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_whole_files_only(
    repository: Repository, tmp_path: Path, sent: signal.Signals
) -> None:
    _, contents = _stored(repository, tmp_path)
    repository.close()
    code = """
import os, signal, sys
from ijfs.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves run in the background
pwrite = os.pwrite
def slow(fd, data, offset):
    os.write(2, b"writing\\n") if offset else None
    import time; time.sleep(0.05)
    return pwrite(fd, data[:100_000], offset)
os.pwrite = slow
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "-r", str(repository.path), "export", "latest:files", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as export:
        assert export.stderr is not None
        assert export.stderr.readline() == "writing\n"
        export.send_signal(sent)
        said = [line for line in export.stderr if line != "writing\n"]
    assert export.returncode == 128 + sent
    if sent == signal.SIGINT:
        assert "not complete" in "".join(said)
        assert "Traceback" not in "".join(said)
    assert _only_whole(tmp_path / "out", contents) < len(contents)
