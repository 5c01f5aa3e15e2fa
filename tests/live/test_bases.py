"""Bases: what an import reads and leaves out, what a program on one sees, what comes back whatever the machine has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_env import LiveEnv
from small_roots import libc_of, make_root
from waiting import eventually

from ijfs.cli.main import invoke
from ijfs.live.bases import cache, delta, versions
from ijfs.live.bases.comparison import compare
from ijfs.live.bases.importing import import_base
from ijfs.live.bases.records import TAGS
from ijfs.live.bases.root_walk import FILES, Item, Walk
from ijfs.live.bases.versions import BaseNeededError
from ijfs.live.client import api as client
from ijfs.live.errors import CommandError, SandboxError
from ijfs_engine import IjfsError, Repository, StorageError, UnknownNameError

pytestmark = [pytest.mark.root, pytest.mark.criu]

COUNTER = "n=0; while :; do n=$((n+1)); echo $n >/tmp/count; cat /etc/motd >/tmp/motd; sleep 0.05; done"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small root, a second old: what was written just now is not believed to be unchanged."""
    made = make_root(tmp_path / "root")
    time.sleep(0.1)
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty repository."""
    return Repository.init(tmp_path / "repository")


def on_base(live_env: LiveEnv, root: Path, name: str = "small") -> str:
    """Import the root into the test's repository; the version's id."""
    with Repository.open(live_env.repo) as repository:
        return import_base(repository, root, name).snapshot.id.hex()


def written(live_env: LiveEnv, name: str, file: str) -> str:
    """A file of /tmp as the program wrote it, "" where it has not."""
    path = live_env.upper(name) / "tmp" / file
    return path.read_text().strip() if path.exists() else ""


# -- importing


def test_an_import_reads_what_is_new_and_leaves_out_what_a_sandbox_has_of_its_own(
    root: Path, repository: Repository
) -> None:
    (root / "tmp/scratch").write_text("x")
    (root / "proc/version").write_text("x")
    (root / "opt/data/big").write_text("x" * 100_000)
    first = import_base(repository, root, "small", exclude=["opt/data"])
    assert first.changed
    assert first.bytes_read > 0
    reader = repository.reader()
    names = {entry.name for entry in reader.tree(reader.lookup(first.snapshot.root, FILES).content or b"").entries}
    assert {b"usr", b"tmp", b"proc", b"opt", b"bin"} <= names
    for empty in ("tmp", "proc", "opt/data"):
        assert reader.tree(reader.lookup(first.snapshot.root, f"{FILES}/{empty}").content or b"").entries == ()
    again = import_base(repository, root, "small", exclude=["opt/data"])
    assert (again.changed, again.bytes_read, again.snapshot.id) == (False, 0, first.snapshot.id)
    (root / "etc/motd").write_text("two\n")
    third = import_base(repository, root, "small", exclude=["opt/data"])
    assert (third.changed, third.bytes_read) == (True, 4)


def test_an_older_version_goes_when_nothing_needs_it_and_bases_are_nobodys_latest(
    root: Path, repository: Repository
) -> None:
    first = import_base(repository, root, "small").snapshot
    (root / "etc/motd").write_text("two\n")
    second = import_base(repository, root, "small").snapshot
    tags = repository.refs.tags()
    assert set(tags.values()) == {second.id}
    with pytest.raises(UnknownNameError):
        repository.snapshot(first.id)
    with pytest.raises(UnknownNameError):
        repository.resolve("latest")
    assert repository.resolve(f"{TAGS}small") == second.id
    (info,) = versions.bases(repository)
    assert (info.name, info.meta.system, info.versions, info.laid_out) == ("small", "Small Root 1", 1, False)


def test_a_base_is_laid_out_as_it_was_byte_for_byte_with_hard_links_and_owners(
    root: Path, repository: Repository
) -> None:
    os.chown(root / "etc/motd", 12, 34)
    (root / "etc/motd").chmod(0o4751)
    os.link(root / "usr/bin/cat", root / "usr/bin/cat2")
    os.setxattr(root / "etc/motd", "user.note", b"kept")
    snapshot = import_base(repository, root, "small").snapshot
    with cache.in_use(repository.path):
        base, path = cache.materialised(repository, snapshot, "small")
        same, again = cache.materialised(repository, snapshot, "small")
    assert (base, path) == (same, again)
    done = subprocess.run(["diff", "-r", root, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    status = (path / "etc/motd").lstat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12, 34, 0o4751)
    assert os.getxattr(path / "etc/motd", "user.note") == b"kept"
    assert (path / "usr/bin/cat").stat().st_ino == (path / "usr/bin/cat2").stat().st_ino
    assert (path / "etc/motd").stat().st_mtime_ns == (root / "etc/motd").stat().st_mtime_ns


def test_a_diff_names_what_came_went_and_changed(root: Path, repository: Repository) -> None:
    import_base(repository, root, "small")
    assert compare(repository, "small", None) == []
    (root / "etc/motd").write_text("longer\n")
    (root / "etc/os-release").unlink()
    (root / "opt/new").mkdir()
    (root / "opt/new/file").write_text("x")
    found = [(change.what, change.path) for change in compare(repository, "small", None)]
    assert found == [("changed", "/etc/motd"), ("removed", "/etc/os-release"), ("added", "/opt/new")]


def test_a_version_that_somebody_is_about_to_stand_on_stays_until_the_next_gc(
    root: Path, repository: Repository
) -> None:
    first = import_base(repository, root, "small").snapshot
    with cache.in_use(repository.path):  # a start that has chosen it, whose instance has no record yet
        (root / "etc/motd").write_text("two\n")
        import_base(repository, root, "small")
        assert repository.snapshot(first.id).id == first.id
    versions.sweep(repository)
    with pytest.raises(UnknownNameError):
        repository.snapshot(first.id)


def test_a_file_that_vanishes_while_it_is_imported_is_left_out(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "opt/fleeting").write_text("x")
    items = Walk.items

    def gone_after(self: Walk, now_ns: int) -> list[Item]:
        found = list(items(self, now_ns))
        (root / "opt/fleeting").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Walk, "items", gone_after)
    snapshot = import_base(repository, root, "small").snapshot
    reader = repository.reader()
    with pytest.raises(UnknownNameError):
        reader.lookup(snapshot.root, f"{FILES}/opt/fleeting")


# -- killed, full, two at once

MAKER = """
import os, sys, signal
from pathlib import Path
from ijfs.live.bases import cache
from ijfs_engine import Repository
import ijfs.live.bases.cache as module
repository = Repository.open(sys.argv[1])
if sys.argv[2] == "kill":
    module._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
snapshot = repository.snapshot(repository.refs.tags()["base@small"])
with cache.in_use(repository.path):
    base, path = cache.materialised(repository, snapshot, "small")
print(base.copy)
"""


def maker(repository: Repository, how: str) -> subprocess.Popen[str]:
    """A process that lays the base out."""
    command = [sys.executable, "-c", MAKER, str(repository.path), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_maker_killed_at_the_last_moment_leaves_nothing_that_is_taken_for_a_base(
    root: Path, repository: Repository
) -> None:
    snapshot = import_base(repository, root, "small").snapshot
    killed = maker(repository, "kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    place = cache.directory_of(repository.path, snapshot.id.hex())
    assert not place.root.exists()
    assert list(place.path.glob("root.new-*"))
    with cache.in_use(repository.path):
        cache.materialised(repository, snapshot, "small")
    assert place.root.is_dir()
    assert not list(place.path.glob("root.new-*"))


def test_two_makers_at_once_make_one(root: Path, repository: Repository) -> None:
    import_base(repository, root, "small")
    makers = [maker(repository, "ordinary") for _ in range(3)]
    copies = {one.communicate()[0] for one in makers}
    assert [one.returncode for one in makers] == [0, 0, 0]
    assert len(copies) == 1


def test_a_full_disk_is_said_before_anything_is_written_and_leaves_nothing(root: Path, small_disk: Path) -> None:
    blob = root / "opt/blob"
    blob.write_bytes(b"ijfs" * (15 << 20))  # 60 MiB that compress to nothing
    time.sleep(0.1)
    with Repository.init(small_disk / "repo") as repository:
        snapshot = import_base(repository, root, "small").snapshot
        with cache.in_use(repository.path), pytest.raises(StorageError, match="MiB are free"):
            cache.materialised(repository, snapshot, "small")
        assert not cache.directory_of(repository.path, snapshot.id.hex()).root.exists()


def test_an_import_onto_a_full_disk_leaves_the_repository_as_it_was(root: Path, small_disk: Path) -> None:
    (root / "opt/blob").write_bytes(os.urandom(80 << 20))
    with Repository.init(small_disk / "repo") as repository:
        with pytest.raises(StorageError):
            import_base(repository, root, "small")
        assert repository.snapshots() == []
        assert repository.refs.tags() == {}
        (root / "opt/blob").unlink()
        assert import_base(repository, root, "small").changed


def test_a_swept_base_is_one_that_nothing_stands_on(root: Path, repository: Repository) -> None:
    first = import_base(repository, root, "small").snapshot
    with cache.in_use(repository.path):
        cache.materialised(repository, first, "small")
        assert cache.sweep(repository.path, set) == []  # somebody is choosing
    (root / "etc/motd").write_text("two\n")
    second = import_base(repository, root, "small").snapshot
    assert versions.sweep(repository) == [first.id.hex()]
    assert not cache.directory_of(repository.path, first.id.hex()).path.exists()
    assert cache.directory_of(repository.path, second.id.hex()).table.exists()
    assert versions.remove(repository, "small") == [second.id.hex()]
    assert versions.bases(repository) == []


# -- what changed since


def test_what_changed_since_an_import_is_found_and_put_into_a_new_layer(root: Path, repository: Repository) -> None:
    (root / "opt/old").mkdir()
    (root / "opt/old/file").write_text("x")
    (root / "opt/edited").write_text("x")
    time.sleep(0.1)
    snapshot = import_base(repository, root, "small").snapshot
    table = cache.read_table(repository.path, snapshot.id.hex())
    assert table is not None
    assert not delta.look(table, [root / "opt"])
    (root / "opt/edited").write_text("in place")
    assert not delta.look(table, [])  # no name came or went, and nobody said that people edit there
    (root / "opt/old/file").unlink()
    (root / "opt/old").rmdir()
    (root / "opt/new").mkdir()
    (root / "opt/new/file").write_text("y")
    (root / "opt/new/link").symlink_to("file")
    (root / "etc/os-release").unlink()
    found = delta.look(table, [root / "opt"])
    assert set(found.copied) == {b"opt", b"etc", b"opt/new", b"opt/new/file", b"opt/new/link", b"opt/edited"}
    assert set(found.gone) == {b"opt/old", b"etc/os-release"}
    upper = root.parent / "upper"
    upper.mkdir()
    delta.put_into(upper, root, delta.unpacked(delta.packed(found)))
    assert (upper / "opt/edited").read_text() == "in place"
    assert os.readlink(upper / "opt/new/link") == "file"
    for gone in ("opt/old", "etc/os-release"):
        assert (upper / gone).lstat().st_rdev == 0
        assert (upper / gone).is_char_device()


def test_a_root_that_changed_a_lot_is_to_be_imported_again(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = import_base(repository, root, "small").snapshot
    table = cache.read_table(repository.path, snapshot.id.hex())
    assert table is not None
    monkeypatch.setattr(delta, "MOST_FILES", 10)
    for number in range(11):
        (root / f"opt/{number}").write_text("x")
    with pytest.raises(delta.TooDifferent):
        delta.look(table, [])


# -- programs


def test_a_program_on_a_base_comes_back_on_it_whatever_the_machine_has_by_then(live_env: LiveEnv, root: Path) -> None:
    """The library that it maps is another one when it is restored: in the root it came from, and in the base's newest
    version. Its own version is what comes back, laid out anew too."""
    first = on_base(live_env, root)
    live_env.command("count", COUNTER, base="small")
    assert eventually(lambda: written(live_env, "count", "motd") == "one")
    saved = live_env.save("count").snapshot
    live_env.stop("count")
    libc = libc_of(root)
    libc.write_bytes(libc.read_bytes() + b"upgraded")
    (root / "etc/motd").write_text("two\n")
    second = on_base(live_env, root)
    assert second != first
    info = live_env.restore(saved, "old")
    assert info.base == "small"
    assert eventually(lambda: int(written(live_env, "old", "count") or 0) > 3)
    assert eventually(lambda: written(live_env, "old", "motd") == "one")
    live_env.command("new", COUNTER, base="small")
    assert eventually(lambda: written(live_env, "new", "motd") == "two")
    live_env.stop("old")
    client.remove(live_env.repo, "old")
    client.remove(live_env.repo, "count")
    with Repository.open(live_env.repo) as repository:
        directory = cache.directory_of(live_env.repo, first)
        assert directory.root.is_dir()
        with pytest.raises(BaseNeededError, match="count"):
            versions.remove(repository, "small")
        assert versions.sweep(repository) == []  # a snapshot stands on it
        cache._remove(directory.path)  # as on another machine
    live_env.restore(saved, "elsewhere")
    assert eventually(lambda: int(written(live_env, "elsewhere", "count") or 0) > 3)
    second_save = live_env.save("elsewhere").snapshot
    live_env.restore(second_save, "elsewhere", replace=True)
    assert eventually(lambda: written(live_env, "elsewhere", "motd") == "one")


def test_what_a_program_wrote_into_the_bases_directories_is_merged_again_on_another_copy(
    live_env: LiveEnv, root: Path
) -> None:
    """An overlay remembers by file handle what a directory was merged with; on another copy it would hide all of it."""
    ident = on_base(live_env, root)
    script = "touch /etc/made; n=0; while :; do n=$((n+1)); ls /etc >/tmp/ls; echo $n >/tmp/count; sleep 0.05; done"
    live_env.command("writer", script, base="small")
    assert eventually(lambda: "motd" in written(live_env, "writer", "ls"))
    saved = live_env.save("writer").snapshot
    live_env.stop("writer")
    client.remove(live_env.repo, "writer")
    cache._remove(cache.directory_of(live_env.repo, ident).path)
    live_env.restore(saved, "again")
    before = int(written(live_env, "again", "count"))
    assert eventually(lambda: int(written(live_env, "again", "count") or 0) > before + 2)
    assert set(written(live_env, "again", "ls").split()) >= {"made", "motd", "os-release"}


def test_a_fork_a_killed_keeper_and_a_restart_stay_on_the_base(live_env: LiveEnv, root: Path) -> None:
    on_base(live_env, root)
    live_env.command("count", COUNTER, base="small")
    assert eventually(lambda: bool(written(live_env, "count", "count")))
    forked = client.fork(live_env.repo, "count", ["a", "b"])
    assert [info.base for info in forked] == ["small", "small"]
    pid = int((live_env.repo / "live/a/instance.json").read_text().split('"keeper": {')[1].split(":")[1].split(",")[0])
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert live_env.save("a").snapshot
    with client.connect(live_env.repo, "a") as keeper:
        assert keeper.status().base == "small"
    spec = client.InstanceSpec(name="b", argv=("sh", "-c", COUNTER), base="small")
    live_env.stop("b")
    (root / "etc/motd").write_text("two\n")
    on_base(live_env, root)
    assert client.start(live_env.repo, spec, again=True).base == "small"
    assert eventually(lambda: bool(written(live_env, "b", "motd")))


def test_what_a_base_has_not_got_is_said(live_env: LiveEnv, root: Path) -> None:
    on_base(live_env, root)
    with pytest.raises(UnknownNameError, match="there is no base `other`"):
        live_env.command("none", "true", base="other")
    with pytest.raises(CommandError, match="no command `python9`"):
        client.start(live_env.repo, client.InstanceSpec(name="x", argv=("python9",), base="small"))
    live_env.command("stays", COUNTER, base="small")
    saved = live_env.save("stays").snapshot
    live_env.stop("stays")
    with Repository.open(live_env.repo) as repository:
        for tag in [tag for tag in repository.refs.tags() if tag.startswith(TAGS)]:
            ident = repository.refs.tags()[tag]
            repository.refs.delete_tag(tag)
        repository.remove(ident)
        cache._remove(cache.directory_of(live_env.repo, ident.hex()).path)
    with pytest.raises(SandboxError, match="not in this repository"):
        live_env.restore(saved, "gone")


def test_a_base_without_an_init_gets_this_machines(live_env: LiveEnv, root: Path) -> None:
    (root / "usr/bin/tini").unlink()
    on_base(live_env, root)
    live_env.command("count", COUNTER, base="small")
    assert eventually(lambda: bool(written(live_env, "count", "count")))
    live_env.restore(live_env.save("count").snapshot, "again")


def test_tags_of_a_base_go_with_the_base_only(
    root: Path, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    import_base(repository, root, "small")
    assert invoke(["-r", str(repository.path), "tag", "-d", "base@small"]) == 1
    assert "ijfs base rm small" in capsys.readouterr().err
    assert invoke(["-r", str(repository.path), "base", "rm", "small"]) == 0
    assert invoke(["-r", str(repository.path), "base", "rm", "small"]) != 0
    with pytest.raises(IjfsError):
        import_base(repository, root, "none")
