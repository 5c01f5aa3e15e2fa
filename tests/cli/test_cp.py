"""`ijfs cp`, and `ls` and `cat` of programs: whatever a program wrote comes out, saved or not, and nothing is written
through a link that it planted. The programs here are records over directories and processes of the test's own; the real
ones are in test_live.py."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import msgspec
import pytest
from calls import Ijfs
from json_page import check

from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import write_record
from ijfs.live.model.records import InstanceRecord, InstanceSpec, Volume
from ijfs.live.process import procfs


def make_instance(repo: Path, name: str, cwd: str, *, live: bool = False, volumes: tuple[Volume, ...] = ()) -> Path:
    """An instance's directory and record; returns the writable layer of its root. A live one is this very process."""
    paths = InstancePaths.of(repo, name)
    sandbox = paths.sandbox(1)
    sandbox.upper.mkdir(parents=True)
    for volume in volumes:
        sandbox.volume(volume.key).upper.mkdir(parents=True)
    program = procfs.identify(os.getpid()) if live else None
    status = "running" if live else "exited"
    spec = InstanceSpec(name=name, argv=("job",), cwd=cwd)
    record = InstanceRecord(spec=spec, status=status, program=program, exit_status=0, volumes=volumes)
    write_record(paths, record)
    return sandbox.upper


@pytest.fixture
def ended(repo: Path) -> Path:
    """The layer of an ended program `job` that worked in /work/here."""
    upper = make_instance(repo, "job", "/work/here")
    work = upper / "work" / "here"
    (work / "results" / "deep").mkdir(parents=True)
    (work / "out.csv").write_text("a,b\n1,2\n")
    os.utime(work / "out.csv", ns=(10**18, 10**18))
    (work / "out.csv").chmod(0o4750)
    (work / "results" / "deep" / "one").write_text("one")
    (work / "results" / "link").symlink_to("deep/one")
    return upper


def test_an_ended_programs_unsaved_files_are_listed_printed_and_copied(
    ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ijfs("ls", "job").out.split() == ["out.csv", "results/"]
    assert ijfs("ls", "-R", "job:results").out.splitlines() == ["deep/", "deep/one", "link -> deep/one"]
    assert ijfs("cat", "job", "out.csv").out == ijfs("cat", "job:/work/here/out.csv").out == "a,b\n1,2\n"
    (tmp_path / "to").mkdir()
    monkeypatch.chdir(tmp_path / "to")
    copied = ijfs("cp", "job:out.csv", ".", "--json").json
    check(copied, "cp")
    assert (copied["files"], copied["bytes"], copied["left_out"]) == (1, 8, 0)
    found = (tmp_path / "to" / "out.csv").stat()
    assert (found.st_mtime_ns, found.st_mode & 0o7777) == (10**18, 0o750), "a setuid bit of a sandbox stays there"
    assert ijfs("cp", "-a", "job:results", "job:out.csv", "new.csv").code == 1, "several files go into a directory"
    assert ijfs("cp", "job:out.csv", "new.csv").code == 0
    assert ijfs("cp", "-r", "job:results", ".").code == 0, "-r where no repository is meant"
    assert ijfs("cp", "-r", repo, "job:out.csv", "new.csv").code == 0, "-r where one is"
    assert (tmp_path / "to" / "results" / "deep" / "one").read_text() == "one"
    assert os.readlink(tmp_path / "to" / "results" / "link") == "deep/one"
    assert sorted(os.listdir(tmp_path / "to")) == ["new.csv", "out.csv", "results"]


def test_two_sources_of_one_name_are_refused_before_anything_is_copied(
    ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path
) -> None:
    other = make_instance(repo, "other", "/work/here") / "work" / "here"
    other.mkdir(parents=True)
    (other / "out.csv").write_text("of the other")
    (tmp_path / "to").mkdir()
    refused = ijfs("cp", "job:out.csv", "job:results", "other:/work/here/out.csv", tmp_path / "to")
    assert (refused.code, os.listdir(tmp_path / "to")) == (2, [])
    assert "job:out.csv and other:/work/here/out.csv would both become `out.csv`" in refused.err
    assert ijfs("cp", "job:results/.", "other:.", tmp_path / "to").code == 0, "contents go beside each other"
    assert sorted(os.listdir(tmp_path / "to")) == ["deep", "link", "out.csv"]


def test_json_of_ls_and_cat_of_a_program_says_which(ijfs: Ijfs, repo: Path, ended: Path) -> None:
    listed, shown = ijfs("ls", "job", "--json").json, ijfs("cat", "job", "out.csv", "--json").json
    check(listed, "ls")
    check(shown, "cat")
    assert (listed["program"], listed["snapshot"], listed["path"]) == ("job", None, "/work/here")
    assert (shown["program"], shown["path"], shown["content"]) == ("job", "/work/here/out.csv", "a,b\n1,2\n")


def test_what_an_ended_program_deleted_or_never_wrote_is_told_apart(ijfs: Ijfs, repo: Path, ended: Path) -> None:
    os.mknod(ended / "work" / "here" / "gone", 0o020000, 0)
    assert "gone" not in ijfs("ls", "job").out
    assert ijfs("cat", "job:gone").code == 1
    result = ijfs("cp", "job:/etc/hostname", "-")
    assert result.code == 1
    assert "did not write it: it is this machine's own file" in result.err
    assert "shows it" in ijfs("cp", "job:/no/such/file", "-").err


def test_links_that_a_program_planted_lead_nowhere_outside(ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    work = ended / "work" / "here"
    (work / "absolute").symlink_to(secret)
    (work / "upwards").symlink_to("../" * 30 + str(secret).lstrip("/"))
    for name in ("absolute", "upwards", "../" * 30 + str(secret).lstrip("/")):
        assert ijfs("cat", "job", name).code == 1, name
        assert ijfs("cp", f"job:{name}", tmp_path / "stolen").code == 1, name
    assert not (tmp_path / "stolen").exists()


def test_nothing_is_written_through_a_link_at_the_target(ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "to", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / "results").mkdir(parents=True)
    (target / "results" / "deep").symlink_to(elsewhere)
    refused = ijfs("cp", "job:results", target)
    assert (refused.code, "is not written through" in refused.err) == (1, True)
    assert list(elsewhere.iterdir()) == []
    (target / "out.csv").symlink_to(elsewhere / "file")
    assert ijfs("cp", "job:out.csv", target).code == 0
    assert not (target / "out.csv").is_symlink(), "a link where a file goes is replaced"
    assert list(elsewhere.iterdir()) == []
    assert not [name for name in os.listdir(target) if name.endswith(".part")]


def test_a_directory_in_the_way_of_a_file_stays(ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path) -> None:
    (tmp_path / "to" / "out.csv" / "mine").mkdir(parents=True)
    result = ijfs("cp", "job:out.csv", tmp_path / "to")
    assert (result.code, "is a directory where the copy goes" in result.err) == (1, True)
    assert os.listdir(tmp_path / "to") == ["out.csv"]
    assert os.listdir(tmp_path / "to" / "out.csv") == ["mine"]


def test_a_pipe_gets_a_files_bytes_and_a_directory_as_a_tar_archive(run_ijfs: Ijfs, repo: Path, ended: Path) -> None:
    with (ended / "work" / "here" / "holes").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
        file.truncate(6 << 20)
    assert run_ijfs("cp", "job:out.csv", "-").out == "a,b\n1,2\n"
    whole = run_ijfs("cp", "job:holes", "-").out.encode()
    assert whole == bytes(5 << 20) + b"end" + bytes((1 << 20) - 3)
    archive = run_ijfs("cp", "job:results", "-").out.encode(errors="surrogateescape")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert sorted(tar.getnames()) == ["results", "results/deep", "results/deep/one", "results/link"]
        one = tar.extractfile("results/deep/one")
        assert one is not None
        assert one.read() == b"one"


def test_holes_stay_holes(ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path) -> None:
    with (ended / "work" / "here" / "holes").open("wb") as file:
        file.truncate(64 << 20)
    assert ijfs("cp", "job:holes", tmp_path).code == 0
    assert ((tmp_path / "holes").stat().st_size, (tmp_path / "holes").stat().st_blocks) == (64 << 20, 0)


def test_sockets_and_pipes_are_left_out_and_counted(
    ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ended / "work" / "here" / "results"
    os.mkfifo(results / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(results)  # a socket's whole path may be too long
        listening.bind("socket")
    monkeypatch.chdir(tmp_path)
    shown = ijfs("cp", "job:results", tmp_path)
    assert (shown.code, "left out 2 sockets, pipes and devices" in shown.out) == (0, True)
    assert sorted(os.listdir(tmp_path / "results")) == ["deep", "link"]
    assert ijfs("cp", "job:results/fifo", tmp_path).code == 1, "a pipe is never waited for"


@pytest.mark.root
def test_what_root_copies_belongs_to_whose_directory_it_goes_into(
    ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 1234, 2345)
    assert ijfs("cp", "job:results", "job:out.csv", tmp_path / "theirs").code == 0
    found = [path.lstat() for path in (tmp_path / "theirs").rglob("*")]
    assert {(one.st_uid, one.st_gid) for one in found} == {(1234, 2345)}
    assert len(found) == 5


def test_volumes_of_an_ended_program_are_where_it_had_them(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    upper = make_instance(repo, "v", data, volumes=(Volume("v0", data), Volume("v1", f"{data}/inner")))
    box = upper.parent
    (box / "volumes" / "v0" / "upper" / "a").write_text("a")
    (box / "volumes" / "v1" / "upper" / "b").write_text("b")
    assert ijfs("ls", "-R", "v").out.splitlines() == ["a", "inner/", "inner/b"]
    assert ijfs("cat", "v:inner/b").out == "b"
    above = ijfs("ls", "-R", f"v:{tmp_path}").out.splitlines()
    assert above == ["data/", "data/a", "data/inner/", "data/inner/b"]


def test_files_go_into_a_live_program_by_its_own_paths(ijfs: Ijfs, run_ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    make_instance(repo, "me", str(work), live=True)
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "f").write_text("deep")
    (tmp_path / "data.csv").write_text("1\n")
    assert ijfs("cp", tmp_path / "data.csv", "me:").code == 0
    assert ijfs("cp", tmp_path / "data.csv", "me:sub/renamed.csv").code == 0
    assert ijfs("cp", tmp_path / "tree", tmp_path / "data.csv", f"me:{work}/sub").code == 0
    assert run_ijfs("cp", "-", "me:typed", stdin=b"typed in").code == 0
    found = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
    assert found == ["data.csv", "sub/data.csv", "sub/renamed.csv", "sub/tree/below/f", "typed"]
    assert (work / "typed").read_text() == "typed in"
    assert ijfs("cat", "--now", "me:sub/tree/below/f").out == "deep"
    assert ijfs("cp", tmp_path / "data.csv", "me:no/such/place").code == 1


def test_files_go_neither_into_a_snapshot_nor_into_what_has_ended(
    ijfs: Ijfs, repo: Path, ended: Path, tmp_path: Path
) -> None:
    (tmp_path / "f").touch()
    assert ijfs("import", tmp_path / "repo" / "live", "--branch", "snap").code in (0, 1)
    assert "has ended" in ijfs("cp", tmp_path / "f", "job:").err
    assert "no snapshot, branch or tag" in ijfs("cp", tmp_path / "f", "nobody:").err


@pytest.mark.parametrize("argv", [["a", "b"], ["job:a", "job:b"], ["/x:y", "."], ["job:x"]])
def test_two_sides_that_make_no_copy_are_wrong_usage(ijfs: Ijfs, repo: Path, argv: list[str]) -> None:
    assert ijfs("cp", *argv).code == 2


@pytest.fixture
def saved(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    """A snapshot that looks like a program's: its files below `files`, its working directory in its record."""
    from ijfs_engine import Repository

    tree = tmp_path / "tree"
    (tree / "files" / "work" / "here" / "results").mkdir(parents=True)
    (tree / "files" / "work" / "here" / "out.csv").write_text("saved\n")
    (tree / "files" / "work" / "here" / "results" / "one").write_text("one")
    (tree / "shm").mkdir()
    (tree / "shm" / "block").write_text("shared")
    spec = msgspec.to_builtins(InstanceSpec(name="job", argv=("job",), cwd="/work/here"))
    with Repository.open(repo) as repository, repository.begin() as writer:
        for name in ("files", "shm"):
            writer.add_directory(name, tree / name)
        writer.commit(message="saved", branch="job", meta={"spec": spec})


def test_a_path_of_a_snapshot_may_be_what_the_program_calls_it(
    ijfs: Ijfs, repo: Path, saved: None, tmp_path: Path
) -> None:
    for path in ("out.csv", "./out.csv", "/work/here/out.csv", "files/work/here/out.csv"):
        assert ijfs("cat", "job", path).out == "saved\n", path
    assert ijfs("cat", "job:/dev/shm/block").out == "shared"
    assert ijfs("ls", "job", "results").out == "one\n"
    assert ijfs("cp", "job:results", tmp_path).code == 0
    assert (tmp_path / "results" / "one").read_text() == "one"
    assert ijfs("export", "job:results", tmp_path / "exported").code == 0
    assert (tmp_path / "exported" / "one").read_text() == "one"
    lost = ijfs("cat", "job", "lost.csv")
    assert "`ijfs ls -R job files` what the program wrote" in lost.err


def test_a_name_of_both_is_the_snapshot_to_ls_and_cat_and_the_program_to_cp(
    ijfs: Ijfs, repo: Path, saved: None, ended: Path
) -> None:
    (ended / "work" / "here" / "out.csv").write_text("unsaved\n")
    assert ijfs("cat", "job", "out.csv").out == "saved\n"
    assert ijfs("cat", "--now", "job", "out.csv").out == "unsaved\n"
    assert ijfs("cp", "job:out.csv", "-").out == "unsaved\n"
    assert ijfs("cp", "job~0:out.csv", "-").out == "saved\n"
    assert "`--now` looks at the files of the program" in ijfs("cat", "job", "results/deep/one").err
    assert ijfs("cat", "--now", "job", "results/deep/one").out == "one"
