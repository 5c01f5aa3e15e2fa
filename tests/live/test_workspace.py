"""Files of a sandbox into a snapshot and out again, by the real engine; what counts as unchanged, what never does."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ijfs.live.checkpoint import workspace
from ijfs.live.checkpoint.ahead import key_of
from ijfs.live.checkpoint.files_before import whole_directories
from ijfs.live.checkpoint.layers import WritableLayer, layers_of
from ijfs.live.checkpoint.snapshot_io import LiveMeta, SaveContents, SnapshotStore
from ijfs.live.checkpoint.workspace import (
    Capture,
    Item,
    LayerWalker,
    StatCache,
    mapped_in,
    put_back,
    stat_cache_of,
)
from ijfs.live.model.records import InstanceSpec, Volume
from ijfs_engine import Entry, Repository, Snapshot, StorageError, export_tree
from ijfs_engine.write.arena import Arena

OLD = time.time_ns() - 10 * 10**9


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo") as opened:
        yield opened


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    path = tmp_path / "upper"
    path.mkdir()
    return path


def capture(
    layers: list[WritableLayer], known: StatCache, tmp_path: Path, mapped: frozenset[str] = frozenset()
) -> Capture:
    return LayerWalker(layers, known, tmp_path / "stage").capture(Arena(64 << 20), mapped)


def settle() -> None:
    """Let the files' times become old enough to be believed."""
    time.sleep(workspace.RACY_NS / 1e9 + 0.01)


def changed(found: Capture) -> set[str]:
    return {item.at for item in found.items.values() if item.entry.kind == "f" and not item.unchanged}


def describe(root: Path) -> dict[str, Any]:
    """Everything that a restore has to bring back, by path."""
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            shown = os.path.relpath(path, os.fsencode(root)).decode(errors="surrogateescape")
            first = inodes.setdefault(status.st_ino, shown)
            found[shown] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                first if kind == stat.S_IFREG else None,
                status.st_mtime_ns if kind != stat.S_IFSOCK else None,
                Path(os.fsdecode(path)).read_bytes() if kind == stat.S_IFREG else None,
                os.readlink(path) if kind == stat.S_IFLNK else None,
                {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
            )
    return found


def fill(upper: Path) -> None:
    (upper / "dir" / "deep").mkdir(parents=True)
    (upper / "dir" / "file").write_bytes(os.urandom(100_000))
    os.link(upper / "dir" / "file", upper / "dir" / "deep" / "same")
    (upper / "empty").touch(mode=0o640)
    (upper / "pointer").symlink_to("dir/file")
    os.mkfifo(upper / "pipe")
    with open(os.fsencode(upper) + b"/bad\xff\nname", "wb") as file:
        file.write(b"any name")
    with (upper / "sparse").open("wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"in the middle")
    os.setxattr(upper / "empty", "user.note", b"noted")
    os.utime(upper / "dir" / "file", ns=(OLD, OLD + 7))
    with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(upper):  # a socket's path is short
        sock.bind("sock")


@pytest.mark.root
def test_everything_a_layer_holds_comes_back(repository: Repository, upper: Path, tmp_path: Path) -> None:
    fill(upper)
    os.mknod(upper / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    (upper / "opaque").mkdir()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.chown(upper / "dir" / "deep", 12, 34)
    found = capture(layers_of(upper, [], None), {}, tmp_path)
    with repository.begin() as writer:
        writer.add_entries((item.at, item.entry, item.source) for item in found.items.values())
        snapshot = writer.commit()
    reader = repository.reader()
    for unseen in (False, True):  # the second is how restores do it
        target = tmp_path / f"target {unseen}"
        target.mkdir()

        def export(path: str, into: Path, unseen: bool = unseen) -> None:
            content = reader.lookup(snapshot.root, path).content
            assert content is not None
            export_tree(reader, content, into, unseen=unseen)

        put_back(export, target, [])
        assert describe(target) == describe(upper)
        assert (target / "sparse").stat().st_blocks < 1000


@pytest.mark.root
def test_a_volumes_files_stand_at_its_path_in_the_snapshot_and_go_back_to_its_layer(
    repository: Repository, upper: Path, tmp_path: Path
) -> None:
    volume = Volume("v0", "/data/disk")
    disk, disk_again, target = tmp_path / "disk", tmp_path / "disk-again", tmp_path / "target"
    for path in (disk, disk_again, target, upper / "data" / "disk"):
        path.mkdir(parents=True)
    (disk / "file").write_bytes(b"on the disk")
    (upper / "data" / "beside").write_bytes(b"on the root")
    layers = layers_of(upper, [(volume, disk)], None)
    with repository.begin() as writer:
        writer.add_entries((i.at, i.entry, i.source) for i in capture(layers, {}, tmp_path).items.values())
        snapshot = writer.commit()
    reader = repository.reader()
    entry = reader.lookup(snapshot.root, "files/data/disk/file")
    assert reader.open(entry).read(0, entry.size) == b"on the disk"
    files = reader.lookup(snapshot.root, "files").content
    assert files is not None
    put_back(lambda path, into: export_tree(reader, files, into), target, [(volume, disk_again)])
    assert (disk_again / "file").read_bytes() == b"on the disk"
    assert (target / "data" / "beside").read_bytes() == b"on the root"
    assert list((target / "data" / "disk").iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("place", ["data", "data/disk"])
def test_a_symlink_on_the_way_to_a_volume_leads_nowhere(upper: Path, tmp_path: Path, place: str) -> None:
    """A stranger's snapshot says where its volumes were, and what stood there."""
    outside = tmp_path / "outside"
    (outside / "disk").mkdir(parents=True)
    (outside / "disk" / "file").write_bytes(b"as it was")
    layer = tmp_path / "layer"
    layer.mkdir()

    def export(path: str, into: Path) -> None:
        (into / place).parent.mkdir(exist_ok=True)
        (into / place).symlink_to(outside if place == "data" else outside / "disk")

    with pytest.raises(StorageError, match="cannot put back /data/disk: Not a directory"):
        put_back(export, upper, [(Volume("v0", "/data/disk"), layer)])
    assert (outside / "disk" / "file").read_bytes() == b"as it was"
    assert sorted(outside.iterdir()) == [outside / "disk"]
    assert list(layer.iterdir()) == []


@pytest.mark.parametrize("stored", [{"key": "../v0", "path": "/data"}, {"key": "v0", "path": "data"}])
def test_a_volume_that_could_not_have_been_is_refused(stored: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(stored, Volume)


def test_paths_longer_than_the_system_takes_are_saved_and_come_back(
    repository: Repository, upper: Path, tmp_path: Path
) -> None:
    here = os.open(upper, os.O_RDONLY)
    for number in range(50):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        for name in ("a", "b"):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=here)
            os.write(fd, b"%d" % number)
            os.close(fd)
        os.symlink("a", "link", dir_fd=here)
    os.close(here)
    descriptors = len(os.listdir("/proc/self/fd"))
    walker = LayerWalker([WritableLayer(upper, "files", "")], {}, tmp_path / "stage")
    assert walker.measure() == 2 * (10 + 2 * 40)
    found = walker.capture(Arena(64 << 20), frozenset())
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with repository.begin() as writer:
        writer.add_entries((item.at, item.entry, item.source) for item in found.items.values())
        snapshot = writer.commit()
    reader = repository.reader()
    target = tmp_path / "target"
    export_tree(reader, reader.lookup(snapshot.root, "files").content, target)

    def listed(top: Path) -> list[str]:
        command = ["find", ".", "-mindepth", "1", "-printf", "%M %s %T@ %l %f\\n"]
        return sorted(subprocess.run(command, cwd=top, capture_output=True, text=True, check=True).stdout.splitlines())

    assert listed(target) == listed(upper)
    for top in (upper, target):
        subprocess.run(["rm", "-rf", str(top)], check=True)


def test_what_a_running_program_removes_is_not_measured_and_no_error(
    upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kept", "gone"):
        (upper / name).write_bytes(b"1234")
        (upper / f"{name}-directory").mkdir()
        (upper / f"{name}-directory" / "in it").write_bytes(b"12")
    scandir = os.scandir

    @contextlib.contextmanager
    def remove_after(directory: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(directory) as entries:
            listed = list(entries)
        if os.path.samestat(os.fstat(directory), upper.stat()):
            (upper / "gone").unlink()
            shutil.rmtree(upper / "gone-directory")
        yield iter(listed)

    walker = LayerWalker([WritableLayer(upper, "files", "")], {}, tmp_path / "stage")
    monkeypatch.setattr(os, "scandir", remove_after)
    assert walker.measure() == 6


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_what_a_running_program_takes_away_around_the_walk_costs_nothing_but_itself(
    upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The directory that the walk is in goes: there is no way up from there."""
    for name in ("a/b/c", "a/z", "z"):
        (upper / name).mkdir(parents=True)
        (upper / name / "file").write_bytes(b"1234")
    (tmp_path / "elsewhere").mkdir()
    status = (upper / "a/b/c").stat()
    scandir = os.scandir

    def take_away_after(directory: int) -> Any:
        if os.path.samestat(os.fstat(directory), status):
            monkeypatch.setattr(os, "scandir", scandir)
            if how == "removed":
                subprocess.run(["rm", "-r", upper / "a/b"], check=True)
            else:
                (upper / "a/b/c").rename(tmp_path / "elsewhere/c")
        return scandir(directory)

    walker = LayerWalker([WritableLayer(upper, "files", "")], {}, tmp_path / "stage")
    monkeypatch.setattr(os, "scandir", take_away_after)
    assert walker.measure() == 8, "what is in it is gone with it"


def test_only_what_changed_is_read_again(upper: Path, tmp_path: Path) -> None:
    for name in ("same", "content", "size", "touched"):
        (upper / name).write_bytes(b"before")
    settle()
    layers = layers_of(upper, [], None)
    first = capture(layers, {}, tmp_path)
    assert changed(first) == {"files/same", "files/content", "files/size", "files/touched"}
    (upper / "size").write_bytes(b"longer than before")
    status = (upper / "content").stat()
    (upper / "content").write_bytes(b"BEFORE")
    os.utime(upper / "content", ns=(status.st_atime_ns, status.st_mtime_ns))  # mtime and size as before, ctime not
    (upper / "new").write_bytes(b"new")
    settle()
    second = capture(layers, first.stat_cache, tmp_path)
    assert changed(second) == {"files/content", "files/size", "files/new"}
    assert second.bytes_read == len(b"BEFORE" + b"longer than before" + b"new")


def test_a_file_changed_a_moment_before_it_was_read_is_not_believed_to_be_unchanged(
    upper: Path, tmp_path: Path
) -> None:
    (upper / "fresh").write_bytes(b"x")
    layers = layers_of(upper, [], None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "RACY_NS", 10**12)  # a moment that a busy machine does not let pass
        assert capture(layers, {}, tmp_path).stat_cache == {}
    settle()
    assert set(capture(layers, {}, tmp_path).stat_cache) == {"files", "files/fresh"}


def test_a_file_mapped_for_writing_is_always_read_again(upper: Path, tmp_path: Path) -> None:
    (upper / "mapped").write_bytes(b"x" * 4096)
    settle()
    layers = layers_of(upper, [], None)
    assert set(capture(layers, {}, tmp_path, frozenset({"/mapped"})).stat_cache) == {"files"}


def test_which_files_are_mapped_for_writing_is_seen(tmp_path: Path) -> None:
    for name in ("shared", "private", "readonly"):
        (tmp_path / name).write_bytes(b"x" * 4096)
    files = [(tmp_path / name).open("r+b") for name in ("shared", "private", "readonly")]
    maps = [
        mmap.mmap(files[0].fileno(), 0),
        mmap.mmap(files[1].fileno(), 0, flags=mmap.MAP_PRIVATE),
        mmap.mmap(files[2].fileno(), 0, prot=mmap.PROT_READ),
    ]
    found = {path for path in mapped_in(os.getpid()) if path.startswith(str(tmp_path))}
    assert found == {str(tmp_path / "shared")}
    for opened in (*maps, *files):
        opened.close()


def test_files_put_back_are_known_unless_the_program_may_have_touched_them(upper: Path) -> None:
    (upper / "put").write_bytes(b"back")
    settle()
    began = time.time_ns()
    (upper / "late").write_bytes(b"written by the program")
    known = stat_cache_of(layers_of(upper, [], None), began)
    assert known == {"files/put": key_of((upper / "put").stat())}


def test_a_large_file_is_staged_on_disk_with_its_holes(
    upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "LARGEST_IN_MEMORY", 1 << 20)
    with (upper / "large").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"middle")
    found = capture(layers_of(upper, [], None), {}, tmp_path)
    (item,) = [item for item in found.items.values() if item.at == "files/large"]
    assert isinstance(item.source, Path)
    assert item.source.read_bytes() == (upper / "large").read_bytes()
    assert item.source.stat().st_blocks < 100
    found.discard()
    assert not (tmp_path / "stage").exists()


def test_what_will_be_read_is_measured_beforehand(upper: Path, tmp_path: Path) -> None:
    (upper / "one").write_bytes(b"x" * 1000)
    settle()
    layers = layers_of(upper, [], None)
    first = capture(layers, {}, tmp_path)
    (upper / "two").write_bytes(b"x" * 500)
    assert LayerWalker(layers, {}, tmp_path / "stage").measure() == 1500
    assert LayerWalker(layers, first.stat_cache, tmp_path / "stage").measure() == 500


NAMES = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "f")


def _disturb(upper: Path, seed: int) -> None:
    """Some of what a program may do to its files between two looks, drawn by a number."""
    chosen = random.Random(seed)
    for number in range(chosen.randrange(1, 7)):
        path, other = upper / chosen.choice(NAMES), upper / chosen.choice(NAMES)
        with contextlib.suppress(OSError, shutil.Error):
            match chosen.randrange(9):
                case 0 | 1:
                    path.write_text(f"written {seed} {number}")
                case 2:
                    path.unlink()
                case 3:
                    shutil.rmtree(path)
                case 4:
                    path.mkdir()
                case 5:
                    os.rename(path, other)
                case 6:
                    os.link(path, other)
                case 7:
                    os.setxattr(path, "user.note", f"{number}".encode())
                case 8:
                    shutil.copytree(path, other)


@pytest.mark.parametrize("seed", range(60))
def test_what_was_read_ahead_and_what_changed_after_it_are_together_what_is_there(
    upper: Path, tmp_path: Path, seed: int
) -> None:
    (upper / "d" / "e").mkdir(parents=True)
    for name in ("a", "d/a", "d/e/a", "d/e/b"):
        (upper / name).write_text(f"{name} as it was")
    _disturb(upper, 1000 + seed)
    if seed % 2:
        settle()
    layers = [WritableLayer(upper, "files", "")]
    walker = LayerWalker(layers, {}, tmp_path / "stage")
    walker.measure()
    walker.read_ahead(arena := Arena(64 << 20))
    _disturb(upper, seed)
    if seed % 3 == 0:
        walker.look()
    elif seed % 3 == 1:  # and CRIU has given a deleted file another name
        walker.look()
        _disturb(upper, 2000 + seed)
        walker.forget_look()
    found = walker.capture(arena, frozenset())
    plain = capture(layers, {}, tmp_path)
    assert _comparable(found) == _comparable(plain)
    assert {at: key for at, key in found.stat_cache.items() if key != key_of(os.lstat(upper / at[6:]))} == {}


def _comparable(found: Capture) -> dict[str, Any]:
    """Entries and bytes by path; which names are one file by the paths, not by the numbers."""
    groups: dict[int, list[str]] = {}
    for at, item in found.items.items():
        groups.setdefault(item.entry.link, []).append(at)
    return {
        at: (
            msgspec.structs.replace(item.entry, link=0),
            sorted(groups[item.entry.link]) if item.entry.link else [],
            b"".join(item.source) if isinstance(item.source, tuple) else item.source,
        )
        for at, item in found.items.items()
    }


def test_a_file_that_was_mapped_when_it_was_read_ahead_is_read_again(upper: Path, tmp_path: Path) -> None:
    (upper / "mapped").write_bytes(b"before")
    settle()
    walker = LayerWalker([WritableLayer(upper, "files", "")], {}, tmp_path / "stage")
    walker.measure(frozenset({"/mapped"}))
    walker.read_ahead(arena := Arena(64 << 20))
    times = (upper / "mapped").stat()
    with (upper / "mapped").open("r+b") as file:
        file.write(b"after!")
    os.utime(upper / "mapped", ns=(times.st_atime_ns, times.st_mtime_ns))
    found = walker.capture(arena, frozenset())
    assert b"".join(found.items["files/mapped"].source) == b"after!"  # type: ignore[arg-type]


def test_what_is_as_it_was_is_not_read_while_the_program_stands_still(
    upper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (upper / f"{number}").write_text(f"{number}")
    settle()
    walker = LayerWalker([WritableLayer(upper, "files", "")], {}, tmp_path / "stage")
    walker.measure()
    walker.read_ahead(arena := Arena(64 << 20))
    (upper / "7").write_text("changed")
    (upper / "new").write_text("new")
    read = []
    real = LayerWalker._source

    def source(*args: Any, **more: Any) -> Any:
        read.append(args[1].name)
        return real(*args, **more)

    monkeypatch.setattr(LayerWalker, "_source", source)
    found = walker.capture(arena, frozenset())
    assert sorted(read) == [b"7", b"new"]
    assert len(found.items) == 52
    assert all(item.source is not None for item in found.items.values() if item.entry.kind == "f")


@pytest.mark.parametrize("seed", range(12))
def test_what_is_stored_of_a_changed_workspace_is_what_is_there(tmp_path: Path, upper: Path, seed: int) -> None:
    for above in ("quiet/a", "quiet/b/c", "d/e", "d/f"):
        (upper / above).mkdir(parents=True)
        for number in range(3):
            (upper / above / f"file {number}").write_text(f"{above} {number}")
    os.link(upper / "quiet/a/file 0", upper / "quiet/a/another name")
    Repository.init(tmp_path / "repo").close()
    store = SnapshotStore(tmp_path / "repo")
    known: StatCache = {}
    parent: Snapshot | None = None
    for turn in range(3):
        settle()
        walker = LayerWalker([WritableLayer(upper, "files", "")], known, tmp_path / "stage")
        walker.measure()
        walker.read_ahead(arena := Arena(64 << 20))
        _disturb(upper, 100 * turn + seed)
        found = walker.capture(arena, frozenset())
        meta = LiveMeta(spec=InstanceSpec(name="n", argv=("true",)))
        contents = SaveContents(images={}, workspace=found, notebook=None, meta=meta, message="", branch="n")
        parent = store.store(contents, parent.id if parent is not None else None, None).snapshot
        known = found.stat_cache
        target = tmp_path / f"out {turn}"
        store.export(parent, "files", target)
        assert describe(target) == describe(upper)
        assert parent.size == sum(item.entry.size for item in found.items.values() if item.entry.kind == "f")
    assert store.repository.fsck().clean
    store.close()


def _item(at: str, kind: str = "f", *, unchanged: bool = True, link: int = 0) -> tuple[str, Item]:
    name = os.fsencode(at.rpartition("/")[2])
    return at, Item(at, Entry(name, kind, 0o644, 0, 0, 0, link=link), unchanged=unchanged)  # type: ignore[arg-type]


def test_a_directory_is_taken_over_where_nothing_in_it_changed() -> None:
    items = dict(
        [
            _item("files", "d"),
            _item("files/quiet", "d"),
            _item("files/quiet/inner", "d"),
            _item("files/quiet/inner/file"),
            _item("files/changed", "d"),
            _item("files/changed/file", unchanged=False),
            _item("files/changed/beside", "d"),
            _item("files/linked", "d"),
            _item("files/linked/name", link=1),
            _item("files/renamed in", "d", unchanged=False),
        ]
    )
    assert whole_directories(items) == {"files/quiet", "files/quiet/inner", "files/changed/beside"}


def test_a_directory_is_not_taken_over_with_a_volume_below_it_whose_mount_point_no_layer_has() -> None:
    """What the volume holds is put below it, at /tmp/a/b here, and a directory that was taken over takes nothing in."""
    items = dict(
        [
            _item("files/tmp", "d"),
            _item("files/tmp/of the layer", "d"),
            _item("files/tmp/a/b", "d"),
            _item("files/tmp/a/b/of the volume"),
        ]
    )
    assert whole_directories(items) == {"files/tmp/of the layer", "files/tmp/a/b"}
