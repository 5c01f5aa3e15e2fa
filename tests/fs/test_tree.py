"""The snapshot tree on a real mount, looked at with the tools people use."""

from __future__ import annotations

import errno
import itertools
import json
import mmap
import os
import random
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from trees import MANY, UNDECODABLE, make_tree, save

from ijfs.fs import mountpoint as mounting
from ijfs.fs.nodes import CHANGING_S, DirectoryNode, FileNode, Node
from ijfs.fs.vfs import repository_root
from ijfs_engine import Entry, Repository, Snapshot, Tree
from ijfs_engine.format.frames import FrameKind
from ijfs_engine.format.records import encode_tree
from ijfs_engine.read.chunk_reader import ChunkReader

pytestmark = [pytest.mark.fuse, pytest.mark.root]

NOT_SEEN_ANY_MORE_S = CHANGING_S + 0.3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was saved."""
    return make_tree(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """An empty repository."""
    with Repository.init(tmp_path_factory.mktemp("store") / "repo") as opened:
        yield opened


@pytest.fixture(scope="module")
def snapshot(repository: Repository, source: Path) -> Snapshot:
    """The snapshot of `source`."""
    return save(repository, source)


@pytest.fixture(scope="module")
def mount(repository: Repository, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repository, mounted for all tests of this file."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not there or not ours")
    place = tmp_path_factory.mktemp("mnt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        mounting.mount(repository.path, place)
        try:
            yield place
        finally:
            mounting.umount(place)


@pytest.fixture
def files(mount: Path, snapshot: Snapshot) -> Path:
    """The saved tree as the mount shows it."""
    return mount / "snapshots" / snapshot.id.hex() / "files"


def everything(top: Path) -> dict[str, os.stat_result]:
    """lstat of every path below, by its name from there."""
    found = {}
    for directory, names, others in os.walk(top):
        for name in names + others:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = os.lstat(path)
    return found


def test_every_entry_has_the_type_mode_owner_size_and_time_it_was_saved_with(files: Path, source: Path) -> None:
    shown, saved = everything(files), everything(source)
    assert shown.keys() == saved.keys()
    for name, was in saved.items():
        now = shown[name]
        fields = ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev")
        assert [getattr(now, f) for f in fields] == [getattr(was, f) for f in fields], name
        if not stat.S_ISDIR(was.st_mode):
            assert (now.st_size, now.st_nlink) == (was.st_size, was.st_nlink), name


def test_every_file_and_link_reads_as_it_was_saved(files: Path, source: Path) -> None:
    result = subprocess.run(
        ["diff", "-r", "--no-dereference", "--exclude=many", source, files], capture_output=True, text=True, check=False
    )
    # diff does not compare special files; it says so for the ones it meets.
    told = [line for line in result.stdout.splitlines() if " is a " not in line and "Only in" not in line]
    assert (told, result.stderr) == ([], "")
    assert (files / UNDECODABLE).read_bytes() == b"name"
    assert os.readlink(files / "dangling") == "/nowhere/at all"


def test_hard_links_are_one_inode_and_all_others_are_their_own(files: Path) -> None:
    shown = everything(files)
    assert shown["large"].st_ino == shown["deep/er/" + "long" * 50 + "/hard link"].st_ino
    numbers = [entry.st_ino for entry in shown.values()]
    assert len(numbers) - len(set(numbers)) == 1


def test_small_files_that_are_read_in_order_come_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    noise = random.Random(8)
    wanted = {f"{number:04}": noise.randbytes(500 + number) for number in range(600)}
    for name, data in wanted.items():
        (tree / name).write_bytes(data)
    asked: list[int] = []
    load = ChunkReader._load

    def counted(reader: ChunkReader, ids: list[bytes], loading: Any) -> None:
        asked.append(len(ids))
        load(reader, ids, loading)

    with Repository.init(tmp_path / "repo") as opened, closing(opened.reader()) as reader:
        saved = save(opened, tree)
        monkeypatch.setattr(ChunkReader, "_load", counted)
        # What is named ahead is loaded at once: how far a thread of its own gets meanwhile is the machine's affair.
        monkeypatch.setattr(ChunkReader, "_background", lambda _reader, call, ids: call(ids))
        node: Node = repository_root(opened, reader)
        for part in (b"snapshots", saved.id.hex().encode(), b"files"):
            assert isinstance(node, DirectoryNode)
            node = node.lookup(part)
        assert isinstance(node, DirectoryNode)

        def read(name: str) -> bytes:
            found = node.lookup(name.encode())
            assert isinstance(found, FileNode)
            file = found.open()
            room = bytearray(10_000)
            return b"".join(bytes(file.read(*part, room)) for part in ((0, 100), (100, 10_000), (100_000, 10)))

        in_order = sorted(wanted)
        for name in in_order:
            assert read(name) == wanted[name]
        assert sum(asked) == 600
        assert len(asked) < 100
        # Who does not read in order gets no more than he asks for.
        del asked[:]
        reader.close()
        for name in random.Random(9).sample(in_order, 40):
            assert read(name) == wanted[name]
        assert sum(asked) <= 60
        # But many times in any order, as grep does in a large directory: the rest comes in groups, too.
        del asked[:]
        for name in random.Random(10).sample(in_order, 600):
            assert read(name) == wanted[name]
        assert sum(asked) <= 600
        assert len(asked) < 300


def test_large_holes_take_no_blocks(repository: Repository, mount: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as sparse:
        sparse.truncate(10 << 30)
        sparse.seek(5 << 30)
        sparse.write(b"island" * 1000)
    (tree / "fifo").symlink_to("nowhere")
    os.link(tree / "fifo", tree / "twin", follow_symlinks=False)
    saved = save(repository, tree, branch="sparse")
    shown = mount / "snapshots" / saved.id.hex() / "files"
    assert (shown / "sparse").stat().st_size == 10 << 30
    assert (shown / "sparse").stat().st_blocks * 512 <= 4 << 20
    assert (shown / "twin").lstat().st_ino == (shown / "fifo").lstat().st_ino
    assert (shown / "twin").lstat().st_nlink == 2


def test_a_program_that_copies_finds_the_holes(repository: Repository, mount: Path, tmp_path: Path) -> None:
    """SEEK_HOLE and SEEK_DATA, as cp and tar use them."""
    tree = tmp_path / "sparse"
    tree.mkdir()
    data = random.Random(5).randbytes(256 << 10)
    with (tree / "sparse").open("wb") as file:
        file.write(data)
        file.seek(64 << 20)
        file.write(data)
        file.truncate(96 << 20)
    (tree / "small").write_bytes(b"small")
    (tree / "empty").touch()
    snapshot = save(repository, tree, branch="sparse")
    files = mount / "snapshots" / snapshot.id.hex() / "files"
    with (files / "sparse").open("rb") as file:
        fd = file.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 100, os.SEEK_HOLE) == len(data)
        assert os.lseek(fd, len(data), os.SEEK_HOLE) == len(data)
        assert os.lseek(fd, 1 << 20, os.SEEK_DATA) == 64 << 20
        assert os.lseek(fd, 64 << 20, os.SEEK_HOLE) == (64 << 20) + len(data)
        for offset, whence in ((80 << 20, os.SEEK_DATA), (96 << 20, os.SEEK_HOLE), (96 << 20, os.SEEK_DATA)):
            with pytest.raises(OSError, match="No such device or address") as refusal:
                os.lseek(fd, offset, whence)
            assert refusal.value.errno == errno.ENXIO
    with (files / "small").open("rb") as file:
        assert (os.lseek(file.fileno(), 2, os.SEEK_DATA), os.lseek(file.fileno(), 0, os.SEEK_HOLE)) == (2, 5)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "--sparse=auto", files / "sparse", copy], check=True)
    assert copy.stat().st_blocks * 512 < 4 << 20
    assert copy.read_bytes() == (tree / "sparse").read_bytes()


def test_what_the_kernel_has_forgotten_is_found_again(files: Path, source: Path) -> None:
    """Entries and nodes go from its caches, and from ours, and come back with the same numbers."""
    before = {path.name: path.lstat().st_ino for path in files.iterdir()}
    subprocess.run(["sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"], check=True)
    assert {path.name: path.lstat().st_ino for path in files.iterdir()} == before
    for path in source.iterdir():
        if path.is_file() and not path.is_symlink():
            assert (files / path.name).read_bytes() == path.read_bytes()


def test_entries_that_share_a_link_number_and_nothing_else_are_shown_apart(repository: Repository, mount: Path) -> None:
    """A stranger's tree may say that a directory and a symbolic link are one."""
    inner = Entry(b"below", "f", 0o600, 0, 0, 0)
    with repository.session() as session:
        below = session.put_object(FrameKind.TREE, encode_tree(Tree((inner,))))
        entries = (
            Entry(b"directory", "d", 0o755, 0, 0, 0, content=below, link=7),
            Entry(b"link", "l", 0o777, 0, 0, 0, size=1, target=b"/", link=7),
        )
        root = session.put_object(FrameKind.TREE, encode_tree(Tree(entries)))
        saved = session.commit_snapshot(root, branch="odd")
    shown = mount / "snapshots" / saved.id.hex()
    assert os.listdir(shown / "directory") == ["below"]
    assert os.readlink(shown / "link") == "/"
    assert (shown / "link").lstat().st_ino != (shown / "directory").lstat().st_ino


def test_blocks_are_what_a_copy_would_take(files: Path) -> None:
    large = os.stat(files / "large")
    assert large.st_blocks == (large.st_size + 511) // 512
    apparent = subprocess.run(["du", "-sB1", files / "large"], capture_output=True, text=True, check=True)
    assert int(apparent.stdout.split()[0]) >= large.st_size


@pytest.mark.parametrize(
    "command",
    [
        ["ls", "-laR"],
        ["find", ".", "-ls"],
        ["du", "-sh", "."],
        ["tar", "-c", "--exclude=./files/socket", "-f", "/dev/null", "."],
        ["grep", "-r", "--devices=skip", "-l", "one line", "."],
    ],
    ids=lambda command: command[0],
)
def test_ordinary_tools_find_nothing_to_complain_about(mount: Path, snapshot: Snapshot, command: list[str]) -> None:
    where = mount / "snapshots" / snapshot.id.hex()
    result = subprocess.run(command, cwd=where, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_directory_of_ten_thousand_lists_each_name_once(files: Path) -> None:
    names = os.listdir(files / "many")
    assert sorted(names) == [f"{number:05d}" for number in range(MANY)]


def test_a_listing_can_be_continued_from_any_offset(files: Path) -> None:
    """What telldir and seekdir are made of, and NFS servers live on."""
    descriptor = os.open(files / "many", os.O_RDONLY | os.O_DIRECTORY)
    try:
        first = os.listdir(descriptor)
        os.lseek(descriptor, 5_002, os.SEEK_SET)
        assert os.listdir(descriptor) == first[5_000:]  # "." and ".." are the first two
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert os.listdir(descriptor) == first
    finally:
        os.close(descriptor)


def test_names_that_are_not_there_are_not_found(files: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (files / "never").stat()
    with pytest.raises(NotADirectoryError):
        (files / "text" / "below").stat()


def test_extended_attributes_are_the_saved_ones(files: Path) -> None:
    assert os.listxattr(files / "text") == ["user.colour"]
    assert os.getxattr(files / "text", "user.colour") == b"blue\0green"
    with pytest.raises(OSError, match="No data") as refusal:
        os.getxattr(files / "byte", "user.colour")
    assert refusal.value.errno == errno.ENODATA


@pytest.mark.parametrize("change", [Path.touch, Path.mkdir, lambda path: path.write_bytes(b"x")])
def test_nothing_can_be_changed(files: Path, change: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        change(files / "new")
    with pytest.raises(OSError, match="Read-only file system"):
        (files / "text").unlink()


def test_a_file_can_be_mapped_shared_and_private(files: Path, source: Path) -> None:
    wanted = (source / "large").read_bytes()
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        with (files / "large").open("rb") as file, mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as mapped:
            assert mapped[:] == wanted


def test_large_direct_reads_are_the_same_bytes(files: Path, source: Path) -> None:
    wanted = (source / "large").read_bytes()
    buffer = mmap.mmap(-1, 1 << 20)
    got = bytearray()
    descriptor = os.open(files / "large", os.O_RDONLY | os.O_DIRECT)
    try:
        while length := os.readv(descriptor, [buffer]):
            got += buffer[:length]
    finally:
        os.close(descriptor)
    assert bytes(got) == wanted


def test_many_readers_at_once_all_get_the_right_bytes(files: Path, source: Path) -> None:
    wanted = (source / "large").read_bytes()
    wrong: list[tuple[int, int]] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        descriptor = os.open(files / "large", os.O_RDONLY)
        for _ in range(100):
            offset, length = chance.randrange(len(wanted)), chance.randrange(1, 300_000)
            if os.pread(descriptor, length, offset) != wanted[offset : offset + length]:
                wrong.append((offset, length))
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_record_is_there_as_json(mount: Path, snapshot: Snapshot) -> None:
    record = json.loads((mount / "snapshots" / snapshot.id.hex() / "meta.json").read_text())
    assert record["id"] == snapshot.id.hex()
    assert record["message"] == "files of tree"
    assert record["created_ns"] == snapshot.created_ns


def test_a_prefix_of_an_id_leads_to_the_snapshot(mount: Path, snapshot: Snapshot) -> None:
    prefix = mount / "snapshots" / snapshot.id.hex()[:8]
    assert prefix.readlink() == Path(snapshot.id.hex())
    assert prefix.samefile(mount / "snapshots" / snapshot.id.hex())
    assert os.listdir(mount / "snapshots").count(prefix.name) == 0
    for name in ("ab", "zzzzzz", "0" * 65, "f" * 64):
        assert not (mount / "snapshots" / name).exists()


def test_df_shows_the_filesystem_the_repository_is_on(mount: Path, repository: Repository) -> None:
    shown, below = os.statvfs(mount), os.statvfs(repository.path)
    assert (shown.f_frsize, shown.f_blocks, shown.f_namemax) == (below.f_frsize, below.f_blocks, below.f_namemax)


def test_new_snapshots_and_moved_branches_show_while_mounted(
    mount: Path, repository: Repository, snapshot: Snapshot, tmp_path: Path
) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "file").write_bytes(b"first")
    first = save(repository, tmp_path / "small", branch="moving")
    link = mount / "branches" / "moving"
    assert (link / "files" / "file").read_bytes() == b"first"
    (tmp_path / "small" / "file").write_bytes(b"second")
    second = save(repository, tmp_path / "small", branch="moving")
    assert os.readlink(link) == f"../snapshots/{second.id.hex()}"
    assert (link / "files" / "file").read_bytes() == b"second"
    repository.refs.set_tag("kept", first.id)
    assert (mount / "tags" / "kept" / "files" / "file").read_bytes() == b"first"
    assert set(os.listdir(mount / "snapshots")) >= {one.id.hex() for one in (snapshot, first, second)}


def test_a_live_instance_links_to_the_snapshot_it_stands_on(
    mount: Path, repository: Repository, snapshot: Snapshot
) -> None:
    for name, text in {
        "one": json.dumps({"version": 1, "snapshot": snapshot.id.hex(), "spec": {"name": "one"}}),
        "unsaved": json.dumps({"snapshot": None}),
        "broken": "{",
    }.items():
        (repository.path / "live" / name).mkdir(parents=True)
        (repository.path / "live" / name / "instance.json").write_text(text)
    assert os.listdir(mount / "live") == ["one"]
    assert (mount / "live" / "one").samefile(mount / "snapshots" / snapshot.id.hex())


def test_a_removed_snapshot_is_gone_and_never_shows_wrong_bytes(
    mount: Path, repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "doomed").mkdir()
    wanted = os.urandom(2 << 20)
    (tmp_path / "doomed" / "file").write_bytes(wanted)
    doomed = save(repository, tmp_path / "doomed", branch="doomed")
    path = mount / "snapshots" / doomed.id.hex() / "files" / "file"
    with path.open("rb", buffering=0) as held:
        assert held.read(4096) == wanted[:4096]
        repository.remove(doomed.id)
        repository.gc()
        time.sleep(NOT_SEEN_ANY_MORE_S)
        assert not path.exists()
        assert doomed.id.hex() not in os.listdir(mount / "snapshots")
        assert not (mount / "branches" / "doomed").is_symlink()
        held.seek(0)
        try:
            rest = held.read()
        except OSError as error:
            assert error.errno == errno.ESTALE  # noqa: PT017 - either is right, by what was cached
        else:
            assert rest == wanted[: len(rest)]


def test_a_damaged_chunk_is_an_io_error_and_other_files_stay_readable(tmp_path: Path, mountpoint: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("good", "bad"):
        (tmp_path / "tree" / name).write_bytes(os.urandom(700_000))
    with Repository.init(tmp_path / "repo") as opened:
        save(opened, tmp_path / "tree")
    spoil(tmp_path / "repo", (tmp_path / "tree" / "bad").read_bytes()[300_000:300_032])
    mounting.mount(tmp_path / "repo", mountpoint)
    try:
        files = mountpoint / "branches" / "main" / "files"
        assert (files / "good").read_bytes() == (tmp_path / "tree" / "good").read_bytes()
        with pytest.raises(OSError, match="Input/output error"):
            (files / "bad").read_bytes()
        with (files / "bad").open("rb", buffering=0) as file:
            wanted = (tmp_path / "tree" / "bad").read_bytes()
            for offset in range(0, 700_000, 50_000):
                try:
                    assert os.pread(file.fileno(), 100, offset) == wanted[offset : offset + 100]
                except OSError as error:
                    assert error.errno == errno.EIO  # noqa: PT017 - right bytes or this, never others
    finally:
        mounting.umount(mountpoint)


def spoil(repository: Path, pattern: bytes) -> None:
    """Flip one bit of the only place in the packs where `pattern` stands (random bytes are stored as they are)."""
    places = [
        (path, at) for path in repository.rglob("*") if path.is_file() and (at := path.read_bytes().find(pattern)) >= 0
    ]
    ((path, at),) = places
    with path.open("r+b") as pack:
        pack.seek(at)
        pack.write(bytes([pattern[0] ^ 1]))


def test_inode_numbers_are_the_same_at_every_mount(
    repository: Repository, snapshot: Snapshot, mount: Path, mountpoint: Path, files: Path
) -> None:
    first = {name: entry.st_ino for name, entry in everything(files).items()}
    mounting.mount(repository.path, mountpoint)
    try:
        again = everything(mountpoint / "snapshots" / snapshot.id.hex() / "files")
        assert {name: entry.st_ino for name, entry in again.items()} == first
        for top in itertools.chain(mount.iterdir(), (mount / "branches").iterdir()):
            assert os.lstat(mountpoint / top.relative_to(mount)).st_ino == os.lstat(top).st_ino
    finally:
        mounting.umount(mountpoint)
