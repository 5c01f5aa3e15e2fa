"""Directories in and out again: every byte and all metadata, whatever stands in them."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ijfs_engine import (
    Attrs,
    CorruptError,
    Entry,
    IjfsError,
    Reader,
    Repository,
    Segments,
    StorageError,
    UnknownNameError,
    export_tree,
    import_directory,
)
from ijfs_engine.read.chunk_reader import ChunkReader

MIB = 1 << 20


def listing(top: Path) -> dict[bytes, tuple[object, ...]]:
    """All that can be seen of a tree: kinds, modes, owners, times, targets, attributes, bytes, links."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, bytes] = {}
    for folder, directories, files in os.walk(os.fsencode(top)):
        for name in (*directories, *files, b"."):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            key = os.path.relpath(path, os.fsencode(top))
            twin = inodes.setdefault(info.st_ino, key) if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode) else b""
            attributes = {
                n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
            }
            times = info.st_mtime_ns if key != b"." else 0
            device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
            found[key] = (info.st_mode, info.st_uid, info.st_gid, times, device, content, twin, attributes)
    return found


def round_trip(repository: Repository, source: Path, target: Path) -> Reader:
    snapshot = import_directory(repository, source)
    reader = repository.reader()
    export_tree(reader, reader.lookup(snapshot.root, "files").content or b"", target)
    assert listing(target) == listing(source)
    return reader


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


def test_every_kind_of_entry_comes_back(repository: Repository, source: Path, tmp_path: Path) -> None:
    (source / "empty").touch()
    (source / "small").write_bytes(b"a few bytes")
    (source / "large").write_bytes(random.Random(1).randbytes(9 * MIB + 13))
    (source / "deep" / "er" / "est").mkdir(parents=True)
    (source / "deep" / "er" / "file").write_text("x" * 300_000)
    (source / "link").symlink_to("deep/er/file")
    (source / "dangling").symlink_to("/no/such\nplace")
    os.link(source / "large", source / "deep" / "second name")
    os.link(source / "large", source / "third")
    os.link(source / "small", source / "deep" / "small too")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(source / "socket"))
    os.chmod(source / "small", 0o4751)
    os.chmod(source / "deep" / "er", 0o500)
    os.chmod(source / "deep", 0o1777)
    for number, path in enumerate(sorted(source.rglob("*"))):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789 + number), follow_symlinks=False)
    round_trip(repository, source, tmp_path / "out")
    os.chmod(source / "deep" / "er", 0o700)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
def test_owners_and_devices_come_back(repository: Repository, source: Path, tmp_path: Path) -> None:
    (source / "owned").write_bytes(b"x")
    (source / "folder").mkdir()
    (source / "link").symlink_to("owned")
    for name in ("owned", "folder", "link"):
        os.chown(source / name, 1234, 5678, follow_symlinks=False)
    os.chmod(source / "owned", 0o6755)
    try:
        os.mknod(source / "null", stat.S_IFCHR | 0o620, os.makedev(1, 3))
        os.mknod(source / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 300))
    except PermissionError:
        pytest.skip("this sandbox forbids device nodes")
    round_trip(repository, source, tmp_path / "out")


def test_extended_attributes_come_back(repository: Repository, source: Path, tmp_path: Path) -> None:
    (source / "file").write_bytes(b"x")
    (source / "folder").mkdir()
    try:
        os.setxattr(source / "file", "user.kept", b"\0\xff any bytes")
        os.setxattr(source / "file", "user.also", b"")
        os.setxattr(source / "folder", "user.too", b"of a directory")
    except OSError:
        pytest.skip("no extended attributes on this filesystem")
    round_trip(repository, source, tmp_path / "out")


def test_names_that_are_not_utf8_come_back(repository: Repository, source: Path, tmp_path: Path) -> None:
    for name in (b"\xff\xfe", b"new\nline", b" ", b"-rf", "Größe 数".encode(), b"x" * 255):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(name)
    (source / os.fsdecode(b"dir\x80")).mkdir()
    (source / os.fsdecode(b"dir\x80") / "f").write_bytes(b"1")
    reader = round_trip(repository, source, tmp_path / "out")
    root = repository.snapshots()[0].root
    assert reader.open(reader.lookup(root, b"files/\xff\xfe")).read(0, 10) == b"\xff\xfe"
    assert reader.lookup(root, os.fsdecode(b"files/dir\x80/f")).size == 1


def test_a_tree_deeper_than_pythons_stack_comes_back(repository: Repository, source: Path, tmp_path: Path) -> None:
    deep = str(source)
    for _ in range(1200):
        deep += "/d"
        os.mkdir(deep)
    Path(deep, "bottom").write_bytes(b"here")
    snapshot = import_directory(repository, source)
    reader = repository.reader()
    export_tree(reader, reader.lookup(snapshot.root, "files").content or b"", tmp_path / "out")
    assert Path(str(tmp_path / "out") + "/d" * 1200, "bottom").read_bytes() == b"here"
    # shutil.rmtree, and so pytest's tidying, is one that the stack is too small for.
    subprocess.run(["rm", "-rf", source, tmp_path / "out"], check=True)


def test_holes_cost_nothing_and_stay_holes(repository: Repository, source: Path, tmp_path: Path) -> None:
    with open(source / "sparse", "wb") as file:
        file.truncate(3 << 30)
        for at in (0, 5 * MIB + 1, (2 << 30) + 7):
            file.seek(at)
            file.write(b"data")
    with open(source / "all hole", "wb") as file:
        file.truncate(50 * MIB)
    snapshot = import_directory(repository, source)
    assert repository.stats().pack_bytes < 100_000
    reader = repository.reader()
    export_tree(reader, reader.lookup(snapshot.root, "files").content or b"", tmp_path / "out")
    for name in ("sparse", "all hole"):
        info = (tmp_path / "out" / name).stat()
        assert info.st_size == (source / name).stat().st_size
        assert info.st_blocks * 512 <= 3 * 64 * 1024
    file = reader.open(reader.lookup(snapshot.root, "files/sparse"))
    assert file.read((2 << 30) + 6, 6) == b"\0data\0"
    assert sum(extent.length for extent in file.extents() if not extent.zero) < MIB


def test_zeros_that_were_written_come_back(repository: Repository, source: Path, tmp_path: Path) -> None:
    parts = [random.Random(2).randbytes(5000), bytes(40_000), b"x", bytes(3 * MIB), b"end"]
    (source / "zeros").write_bytes(b"".join(parts))
    (source / "only zeros").write_bytes(bytes(70_000))
    round_trip(repository, source, tmp_path / "out")


def test_equal_files_are_stored_once(repository: Repository, source: Path) -> None:
    data = random.Random(3).randbytes(2 * MIB)
    for name in "abc":
        (source / name).write_bytes(data)
    import_directory(repository, source)
    assert repository.stats().pack_bytes < 2.1 * MIB


def test_a_directory_that_is_saved_again_gets_the_same_tree(repository: Repository, source: Path) -> None:
    (source / "file").write_bytes(b"x")
    first = import_directory(repository, source)
    second = import_directory(repository, source, parents=[first.id], branch="main")
    assert second.root == first.root
    assert second.parents == (first.id,)
    assert repository.refs.branches() == {"main": second.id}


def test_criu_images_go_to_images_and_anything_else_to_files(repository: Repository, source: Path) -> None:
    (source / "file").write_bytes(b"x")
    reader = repository.reader()
    assert reader.lookup(import_directory(repository, source).root, "files/file").size == 1
    for name in ("inventory.img", "pstree.img"):
        (source / name).write_bytes(b"y")
    assert reader.lookup(import_directory(repository, source).root, "images/file").size == 1


def test_entries_by_path_come_in_any_order_with_the_metadata_they_bring(repository: Repository, tmp_path: Path) -> None:
    """What a save of a live program gives: paths, entries, and bytes only for what changed."""
    shared, large = b"two names, one file", random.Random(3).randbytes(3 * MIB)
    (tmp_path / "staged").write_bytes(large)
    with repository.begin() as writer:
        writer.add_file("kept", b"of the parent")
        first = writer.commit()
    known = repository.reader().lookup(first.root, "kept")
    owner = {"uid": 7, "gid": 8, "mtime_ns": 9}
    with repository.begin([first.id]) as writer:
        writer.add_entries(
            [
                ("home/me/two", Entry(b"-", "f", 0o600, **owner, size=len(shared), link=1), shared),
                ("home/me/large", Entry(b"-", "f", 0o640, **owner, size=len(large)), tmp_path / "staged"),
                ("home/me", Entry(b"-", "d", 0o711, **owner, xattrs=((b"user.note", b"mine"),)), None),
                ("home/me/kept", msgspec.structs.replace(known, mode=0o444), None),
                ("home/link", Entry(b"-", "l", 0o777, **owner, target=b"me/kept"), None),
                ("home/me/one", Entry(b"-", "f", 0o600, **owner, size=len(shared), link=1), shared),
                ("home/me/empty", Entry(b"-", "f", 0o600, **owner), b""),
            ]
        )
        root = writer.commit().root
    reader = repository.reader()
    home, me = reader.lookup(root, "home"), reader.lookup(root, "home/me")
    assert (home.kind, home.mode, home.uid) == ("d", Attrs(0o755).mode, 0)
    assert (me.mode, me.uid, me.gid, me.mtime_ns, me.xattrs) == (0o711, 7, 8, 9, ((b"user.note", b"mine"),))
    names = {entry.name: entry for entry in reader.tree(me.content or b"").entries}
    assert list(names) == [b"empty", b"kept", b"large", b"one", b"two"]
    read = {name: reader.open(entry).read(0, entry.size) for name, entry in names.items()}
    assert read == {b"empty": b"", b"kept": b"of the parent", b"large": large, b"one": shared, b"two": shared}
    assert (names[b"kept"].mode, names[b"kept"].content) == (0o444, known.content)
    assert (names[b"large"].mode, names[b"large"].uid, names[b"large"].gid) == (0o640, 7, 8)
    assert names[b"one"].link == names[b"two"].link != 0
    link = reader.lookup(root, "home/link")
    assert (link.kind, link.target) == ("l", b"me/kept")


def test_files_directories_and_reused_entries_make_one_snapshot(repository: Repository, source: Path) -> None:
    (source / "file").write_bytes(b"x")
    pieces = Segments((memoryview(b"one "), memoryview(b"two")))
    with repository.begin() as writer:
        writer.add_directory("files", source)
        writer.add_file("notebook.ipynb", b"{}", attrs=Attrs(mode=0o600, mtime_ns=5))
        writer.add_file("a/b/pieces", pieces)
        writer.add_file("files/view", memoryview(bytes(300_000)).cast("I"))
        first = writer.commit(message="hello", meta={"k": [1, "v"]})
    reader = repository.reader()
    assert first.meta == {"k": [1, "v"]}
    assert reader.open(reader.lookup(first.root, "a/b/pieces")).read(0, 99) == b"one two"
    assert reader.lookup(first.root, "files/view").size == 300_000
    notebook = reader.lookup(first.root, "notebook.ipynb")
    assert (notebook.mode, notebook.mtime_ns) == (0o600, 5)
    with repository.begin([first.id]) as writer:
        writer.reuse("again", reader.lookup(first.root, "files"))
        writer.reuse("a/renamed.ipynb", notebook)
        second = writer.commit()
    assert reader.open(reader.lookup(second.root, "again/file")).read(0, 9) == b"x"
    assert reader.open(reader.lookup(second.root, "a/renamed.ipynb")).read(0, 9) == b"{}"
    with pytest.raises(UnknownNameError, match="a/b"):
        reader.lookup(second.root, "a/b/pieces")


def test_a_snapshot_says_what_it_holds_and_what_storing_it_took(repository: Repository, source: Path) -> None:
    (source / "sub").mkdir()
    (source / "sub" / "large").write_bytes(random.Random(4).randbytes(MIB))
    (source / "small").write_bytes(b"x" * 5)
    first = import_directory(repository, source)
    assert first.size == MIB + 5
    assert MIB < first.added < MIB + 20_000  # type: ignore[operator]
    with repository.begin([first.id]) as writer:
        writer.reuse("taken/over", repository.reader().lookup(first.root, "files"))
        writer.add_file("more", bytes(7))
        second = writer.commit()
    assert second.size == MIB + 5 + 7
    assert 0 < second.added < 2000  # type: ignore[operator]
    assert repository.snapshots() == [second, first]
    assert repository.snapshots(1) == [second]
    assert [usage.logical for usage in repository.du([first.id, second.id]).snapshots] == [first.size, second.size]


def test_a_writer_that_is_left_without_commit_leaves_nothing(repository: Repository, source: Path) -> None:
    (source / "file").write_bytes(random.Random(4).randbytes(MIB))
    with repository.begin() as writer:
        writer.add_directory("files", source)
    assert repository.snapshots() == []
    writer = repository.begin()
    writer.add_directory("files", source)
    writer.close()
    writer.close()
    assert repository.snapshots() == []


def test_what_cannot_be_read_is_named(repository: Repository, source: Path) -> None:
    with pytest.raises(StorageError, match="no-such"):
        import_directory(repository, source / "no-such")
    with repository.begin() as writer:
        with pytest.raises(StorageError, match="gone"):
            writer.add_file("x", source / "gone")
        with pytest.raises(StorageError, match="regular"):
            writer.add_file("x", Path("/dev/null"))
        for bad in ("", "a/../b", "./x", "a/\0"):
            with pytest.raises(IjfsError):
                writer.add_file(bad, b"x")
        writer.add_file("a", b"x")
        with pytest.raises(IjfsError, match="no directory"):
            writer.add_file("a/b", b"x")


def test_a_file_that_shrinks_meanwhile_fails_the_save_and_nothing_else(
    repository: Repository, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "log").write_bytes(bytes(range(256)) * 40_000)
    real = os.preadv

    def truncating(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(source / "log", 5000)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", truncating)
    with pytest.raises(StorageError, match="shorter"):
        import_directory(repository, source)
    monkeypatch.undo()
    assert repository.snapshots() == []
    assert import_directory(repository, source).root


def test_many_small_files_come_out_in_few_requests(
    repository: Repository, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = random.Random(8)
    for number in range(300):
        file = source / f"{number}"
        file.write_bytes(noise.randbytes(number * 11))
        file.chmod(0o600 | number % 64)
    (source / "the same").write_bytes((source / "7").read_bytes())
    (source / "large").write_bytes(noise.randbytes(300_000))
    asked: list[int] = []
    load = ChunkReader._load

    def counted(reader: ChunkReader, wanted: list[bytes], loading: Any) -> None:
        asked.append(len(wanted))
        load(reader, wanted, loading)

    monkeypatch.setattr(ChunkReader, "_load", counted)
    round_trip(repository, source, tmp_path / "out")
    assert sum(asked) >= 300
    assert len(asked) <= 10


def test_a_damaged_small_file_is_not_exported(repository: Repository, source: Path, tmp_path: Path) -> None:
    for number in range(3):
        (source / f"{number}").write_bytes(random.Random(number).randbytes(1000))
    import_directory(repository, source)
    pack = max((repository.path / "packs").rglob("*.pack"), key=lambda file: file.stat().st_size)
    data = bytearray(pack.read_bytes())
    at = data.index(random.Random(1).randbytes(1000))
    data[at + 500] ^= 1
    pack.write_bytes(data)
    snapshot = repository.snapshots()[0]
    with pytest.raises(CorruptError):
        export_tree(repository.reader(), snapshot.root, tmp_path / "out")


def test_export_refuses_a_directory_with_something_in_it(repository: Repository, source: Path, tmp_path: Path) -> None:
    snapshot = import_directory(repository, source)
    reader = repository.reader()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(IjfsError, match="not empty"):
        export_tree(reader, snapshot.root, tmp_path / "full")
    with pytest.raises(StorageError, match="cannot write"):
        export_tree(reader, snapshot.root, tmp_path / "no" / "such")


def test_progress_counts_every_byte(repository: Repository, source: Path) -> None:
    (source / "small").write_bytes(b"x" * 1000)
    (source / "large").write_bytes(random.Random(5).randbytes(6 * MIB))
    with open(source / "hole", "wb") as file:
        file.truncate(9 * MIB)
    calls: list[tuple[str, int, int]] = []
    import_directory(repository, source, progress=lambda *call: calls.append(call))
    assert max(calls) == ("ingest", 15 * MIB + 1000, 15 * MIB + 1000)


names = (
    st.binary(min_size=1, max_size=12)
    .map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"0"))
    .filter(lambda b: b not in (b".", b".."))
)
files = st.tuples(st.integers(0, 20_000), st.integers(0, 3), st.integers(0, 0o777), st.integers(0, 1 << 60))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(files, lambda below: st.dictionaries(names, below, max_size=5), max_leaves=12))
def test_any_directory_comes_back(repository: Repository, tmp_path: Path, tree: object) -> None:
    source, target = tmp_path / "any", tmp_path / "any out"
    for path in (source, target):
        shutil.rmtree(path, ignore_errors=True)
    source.mkdir()
    _make(os.fsencode(source), {b"top": tree})
    round_trip(repository, source, target)


def _make(path: bytes, tree: object) -> None:
    if isinstance(tree, dict):
        if not os.path.isdir(path):
            os.mkdir(path)
        for name, below in tree.items():
            _make(path + b"/" + name, below)
        return
    size, seed, mode, mtime = tree  # type: ignore[misc]
    with open(path, "wb") as file:
        file.write(random.Random(seed).randbytes(size))
    os.chmod(path, mode)
    os.utime(path, ns=(0, mtime))
