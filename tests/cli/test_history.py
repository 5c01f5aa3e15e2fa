"""Verbs on a real repository made of imported directories: what they print, and what they say when asked wrongly."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from calls import COMMAND, Ijfs
from json_page import check
from waiting import eventually

from ijfs_engine import Repository

PAGE = 4096


@dataclass(frozen=True)
class History:
    """Three imports of one directory that grows, and a side branch."""

    work: Path
    first: str
    second: str
    third: str
    side: str


@pytest.fixture
def history(ijfs: Ijfs, repo: Path, tmp_path: Path) -> History:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (work / "hello.txt").write_text("hello\n")
    (work / "raw.bin").write_bytes(os.urandom(300_000))
    (work / "sub" / "link").symlink_to("../hello.txt")
    (work / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (work / "sub" / "run.sh").chmod(0o751)

    def imported(*options: str) -> str:
        result = ijfs("import", work, "--json", *options)
        assert result.code == 0, result.err
        return str(result.json["snapshot"])

    first = imported("-m", "as it began")
    (work / "hello.txt").write_text("hello, world\n")
    (work / "new.txt").write_text("new\n")
    second = imported("-m", "a file more\n\nand a longer story")
    (work / "sub" / "run.sh").unlink()
    third = imported("-m", "one less")
    (work / "side.bin").write_bytes(os.urandom(200_000))
    side = imported("-m", "another way", "--parent", first, "--branch", "side")
    return History(work, first, second, third, side)


def test_imports_follow_one_another_on_main(ijfs: Ijfs, history: History) -> None:
    data = ijfs("log", "main", "--json").json
    check(data, "log")
    assert [s["id"] for s in data["snapshots"]] == [history.third, history.second, history.first]
    assert [s["message"] for s in data["snapshots"]][2] == "as it began"
    assert data["snapshots"][0]["parents"] == [history.second]
    assert data["snapshots"][0]["branches"] == ["main"]


def test_log_names_ids_ages_messages_and_branches(ijfs: Ijfs, history: History) -> None:
    lines = ijfs("log").out.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith(history.side[:10])
    assert lines[1].endswith("another way  [side]")
    assert "a file more" in lines[3]
    assert "longer story" not in ijfs("log").out
    assert "longer story" in ijfs("log", "-v").out
    assert len(ijfs("log", "-n", "2").out.splitlines()) == 3


@pytest.mark.parametrize("spec", ["main~1", "main~1:", "side~1", "latest"])
def test_a_snapshot_may_be_named_in_every_way(ijfs: Ijfs, history: History, spec: str) -> None:
    wanted = {"main~1": history.second, "main~1:": history.second, "side~1": history.first, "latest": history.side}
    assert ijfs("ls", spec, "--json").json["snapshot"] == wanted[spec]
    assert ijfs("show", history.second[:8], "--json").json["id"] == history.second


def test_ls_shows_names_kinds_and_links(ijfs: Ijfs, history: History) -> None:
    assert ijfs("ls", "main").out == "files/\n"
    assert ijfs("ls", "main~1:files/sub").out == "link -> ../hello.txt\nrun.sh\n"
    long = ijfs("ls", "-l", "main~1", "files/sub").out.splitlines()
    assert long[2].startswith("-rwxr-x--x  ")
    names = ijfs("ls", "-R", "main", "files").out.splitlines()
    assert names == ["hello.txt", "new.txt", "raw.bin", "sub/", "sub/link -> ../hello.txt"]
    check(ijfs("ls", "-R", "main", "--json").json, "ls")


def test_cat_takes_back_each_name_as_ls_shows_it(ijfs: Ijfs, history: History) -> None:
    names = ["a\nb", "a\\nb", "a\\\\nb", "c\\x1b", "lone\\", "\\", "d\\q"]
    odd = history.work / "odd"
    odd.mkdir()
    for name in names:
        (odd / name).write_text(f"this is {name!r}")
    ijfs("import", str(odd), "-m", "odd", "--branch", "odd")
    shown = ijfs("ls", "odd", "files").out.splitlines()
    assert len(set(shown)) == len(names)
    assert {ijfs("cat", "odd", f"files/{one}").out for one in shown} == {f"this is {name!r}" for name in names}
    assert ijfs("cat", "odd", "files/d\\q").out == f"this is {names[-1]!r}"


def test_cat_writes_the_bytes_and_nothing_else(run_ijfs: Ijfs, ijfs: Ijfs, history: History) -> None:
    assert ijfs("cat", "main~2", "files/hello.txt").out == "hello\n"
    assert ijfs("cat", "main:files/hello.txt").out == "hello, world\n"
    raw = run_ijfs("cat", "main", "files/raw.bin").out.encode(errors="surrogateescape")
    assert raw == (history.work / "raw.bin").read_bytes()
    data = ijfs("cat", "main", "files/raw.bin", "--json").json
    check(data, "cat")
    assert base64.b64decode(data["content"]) == raw


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["cat", "main", "files/none"], 1, "none"),
        (["cat", "main", "files"], 1, "not a file"),
        (["cat", "main"], 2, "PATH is missing"),
        (["ls", "main", "files/none"], 1, "none"),
        (["show", "nobody"], 1, "nobody"),
        (["show", "main~9"], 1, "main"),
        (["diff", "main", "nobody"], 1, "nobody"),
        (["import", "/nonexistent-directory"], 2, "nonexistent"),
        (["branch", "-d", "nobody"], 1, "nobody"),
        (["tag", "bad name", "main"], 1, "bad name"),
        (["rm", "nobody"], 1, "nobody"),
        (["import", ".", "--parent", "nobody"], 1, "nobody"),
    ],
)
def test_what_is_not_there_is_named_in_one_sentence(
    ijfs: Ijfs, history: History, argv: list[str], code: int, said: str
) -> None:
    result = ijfs(*argv)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err


def test_an_ambiguous_prefix_lists_what_it_could_be(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    from ijfs_engine import Repository

    with Repository.open(repo) as opened:
        seen: dict[str, str] = {}
        for i in range(4000):
            with opened.begin() as writer:
                ident = writer.commit(message=str(i)).id.hex()
            if ident[:4] in seen:
                break
            seen[ident[:4]] = ident
    result = ijfs("show", ident[:4])
    assert result.code == 1
    assert ident[:4] in result.err
    assert seen[ident[:4]][:8] in result.err + ijfs("show", ident[:4], "--json").out


def test_diff_names_what_was_added_removed_and_changed(ijfs: Ijfs, history: History) -> None:
    assert ijfs("diff", "main~2", "main~1").out.splitlines() == [
        "~ files/hello.txt  6 B → 13 B",
        "+ files/new.txt  4 B",
    ]
    data = ijfs("diff", "main~1", "main", "--json").json
    check(data, "diff")
    assert data["files"] == [
        {"path": "files/sub/run.sh", "change": "removed", "old_size": 10, "new_size": None},
    ] or [c["path"] for c in data["files"]] == ["files/sub", "files/sub/run.sh"]
    assert ijfs("diff", "main", "main").out == "nothing differs\n"


def test_export_gives_the_directory_back_byte_for_byte(ijfs: Ijfs, history: History, tmp_path: Path) -> None:
    target = tmp_path / "out"
    data = ijfs("export", "side:files", target, "--json").json
    check(data, "export")
    assert _listing(target) == _listing(history.work)
    assert data["files"] == 4


def _listing(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        body = path.read_bytes() if stat.S_ISREG(info.st_mode) else str(path.readlink()) if path.is_symlink() else None
        found[str(path.relative_to(top))] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, body)
    return found


def test_export_refuses_a_directory_with_something_in_it(ijfs: Ijfs, history: History, tmp_path: Path) -> None:
    result = ijfs("export", "main", history.work)
    assert result.code == 1
    assert "not an empty directory" in result.err
    assert (history.work / "hello.txt").exists()


def test_show_tells_all_that_is_known(ijfs: Ijfs, history: History) -> None:
    out = ijfs("show", "main~1").out
    assert history.second in out
    assert "and a longer story" in out
    assert "as it began" in out
    assert "4 files" in out
    data = ijfs("show", "main~2", "--json").json
    check(data, "show")
    assert sorted(data["children"]) == sorted([history.second, history.side])
    assert data["usage"]["stored"] - 2000 < data["usage"]["added"] < data["usage"]["stored"] <= 305_000
    assert 100 < ijfs("show", "main", "--json").json["usage"]["added"] < 3000
    assert ijfs("show").out.startswith(f"snapshot  {history.side}")


def test_tree_draws_the_fork_and_names_the_branches(ijfs: Ijfs, history: History) -> None:
    out = ijfs("tree").out
    rows = [line for line in out.splitlines() if "●" in line]
    assert [row.split("  ")[0] for row in rows] == [
        f"● {history.first[:10]}",
        f"├─● {history.side[:10]}",
        f"● {history.second[:10]}",
        f"● {history.third[:10]}",
    ]
    assert "[side]" in rows[1]
    assert "[main]" in rows[3]
    assert "4 snapshots, 2 branches, 0 live" in out
    assert len({len(row) for row in rows}) == 1, "the columns at the right are aligned"
    data = ijfs("tree", "--json").json
    check(data, "tree")
    side, third, second, first = data["snapshots"]
    assert first["added"] > 300_000 > 3000 > second["added"]
    assert side["added"] > 200_000
    assert (
        second["logical"] == third["logical"] + len("#!/bin/sh\n") == first["logical"] + len(", world") + len("new\n")
    )
    assert data["total"]["logical"] == sum(one["logical"] for one in (side, third, second, first))


def test_tree_and_show_do_not_add_up_all_snapshots(
    ijfs: Ijfs, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand of them would take half a minute."""
    from ijfs_engine import Repository

    du = Repository.du
    monkeypatch.setattr(
        Repository, "du", lambda self, ids: du(self, ids) if len(ids) == 1 else pytest.fail("du of all")
    )
    assert ijfs("tree").code == 0
    assert ijfs("show").code == 0


def test_tree_of_a_name_draws_the_tree_it_is_in_and_no_other(ijfs: Ijfs, history: History, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    assert ijfs("import", tmp_path / "apart", "-m", "on its own", "--branch", "apart").code == 0
    assert "on its own" in ijfs("tree").out
    one = ijfs("tree", "side")
    assert all(message in one.out for message in ("as it began", "one less", "another way"))
    assert "on its own" not in one.out
    assert [s["message"] for s in ijfs("tree", "apart", "--json").json["snapshots"]] == ["on its own"]
    assert "no snapshot, branch or tag is called" in ijfs("tree", "nobody").err


def test_tree_is_ascii_where_the_terminal_cannot_do_more(run_ijfs: Ijfs, history: History) -> None:
    out = run_ijfs("tree", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}).out
    assert out.isascii()
    assert f"|-* {history.side[:10]}" in out
    assert ijfs_lines(run_ijfs("tree", "--ascii").out) == ijfs_lines(out)


def ijfs_lines(out: str) -> list[str]:
    return [line.split("  ")[0] for line in out.splitlines() if "*" in line]


def test_messages_cannot_write_to_the_terminal(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "bad\x1b]0;name").write_text("x")
    assert ijfs("import", tmp_path / "d", "-m", "\x1b[31mred\x1b[0m").code == 0
    for argv in (["log"], ["tree"], ["show"], ["log", "-v"], ["du"], ["ls", "-R", "main"], ["branch"]):
        out = ijfs(*argv).out
        assert "\x1b" not in out
        assert "\\x1b" in out or argv[0] == "ls"


def test_branches_are_made_listed_moved_and_deleted(ijfs: Ijfs, history: History) -> None:
    made = ijfs("branch", "try", "main~1", "--json").json
    check(made, "branch NAME")
    listed = ijfs("branch", "--json").json
    check(listed, "branch")
    assert listed["branches"]["try"] == history.second
    refused = ijfs("branch", "try", "main")
    assert refused.code == 1
    assert "-f" in refused.err
    assert ijfs("branch", "-f", "try", "main", "--json").json["was"] == history.second
    check(ijfs("branch", "-d", "try", "--json").json, "rm")
    assert "try" not in ijfs("branch").out


def test_tags_keep_what_no_branch_does(ijfs: Ijfs, history: History) -> None:
    check(ijfs("tag", "v1", "side", "--json").json, "branch NAME")
    check(ijfs("tag", "--json").json, "tag")
    assert "nothing keeps" not in ijfs("rm", "side").out
    out = ijfs("rm", "v1").out
    assert "nothing keeps" in out
    assert history.side[:10] in out
    assert "`ijfs log` lists what nothing keeps until `ijfs gc` frees it" in out


def test_rm_says_until_gc_only_of_what_gc_would_take(ijfs: Ijfs, history: History) -> None:
    ijfs("tag", "v1", "side")
    kept = ijfs("rm", "side").out
    assert "brings it back" in kept
    assert "gc" not in kept
    assert "until `ijfs gc`, `ijfs tag v1 " in ijfs("rm", "v1").out


def test_a_tag_by_a_branchs_name_alone_is_refused_with_what_was_meant(ijfs: Ijfs, history: History) -> None:
    refused = ijfs("tag", "side")
    assert (refused.code, ijfs("tag", "--json").json["tags"]) == (1, {})
    assert "`ijfs tag NAME side`" in refused.err
    assert ijfs("tag", "side", "latest").code == 0
    assert ijfs("tag", "v1").code == 0


def test_rm_says_what_becomes_unreachable_before_and_after(ijfs: Ijfs, history: History) -> None:
    planned = ijfs("rm", "side", "--dry-run", "--json").json
    check(planned, "rm")
    assert planned["unreachable"] == [history.side]
    assert "side" in ijfs("branch").out
    done = ijfs("rm", "side", "--json").json
    assert (done["unreachable"], done["dry_run"]) == ([history.side], False)
    assert "side" not in ijfs("branch").out


def test_rm_of_a_name_that_is_both_asks_which(ijfs: Ijfs, history: History) -> None:
    assert ijfs("tag", "side", "main").code == 0
    result = ijfs("rm", "side")
    assert result.code == 1
    assert "branch -d side" in result.err


def test_rm_of_a_snapshot_moves_its_branch_to_the_parent(ijfs: Ijfs, history: History) -> None:
    done = ijfs("rm", history.third, "--json").json
    check(done, "rm")
    assert ijfs("branch", "--json").json["branches"]["main"] == history.second
    assert history.third not in ijfs("log", "--json").out


def test_rm_says_where_branches_are_now(ijfs: Ijfs, history: History) -> None:
    assert f"branch main would be at {history.second[:10]}" in ijfs("rm", history.third, "-n").out
    assert ijfs("branch", "--json").json["branches"]["main"] == history.third
    assert f"branch main is at {history.second[:10]} now" in ijfs("rm", history.third).out
    ijfs("rm", "side")
    planned = ijfs("rm", history.first, history.second, "-n", "--json").json
    check(planned, "rm")
    assert planned["moved"] == [{"name": "main", "snapshot": None}]
    assert "branch main went with it" in ijfs("rm", history.first, history.second).out
    assert ijfs("branch", "--json").json["branches"] == {}


def test_what_rm_took_comes_back_by_the_command_that_it_names(ijfs: Ijfs, history: History) -> None:
    out = ijfs("rm", "latest").out
    gone = next(ident for ident in (history.third, history.side) if ident[:10] in out.splitlines()[0])
    (command,) = [line.split("`")[3] for line in out.splitlines() if "brings it back" in line]
    assert f"`ijfs branch NAME {gone[:12]}`" in ijfs("show", gone).err
    assert ijfs(*command.split()[1:]).code == 0
    assert ijfs("show", "latest", "--json").json["id"] == gone
    assert ijfs("rm", "main", "-n", "--json").json["undo"] == []


def test_a_removed_snapshot_can_be_tagged_again_until_gc(ijfs: Ijfs, history: History) -> None:
    (command,) = ijfs("rm", history.second, "--json").json["undo"]
    assert command == f"ijfs branch NAME {history.second[:10]}"
    assert ijfs("tag", "kept", history.second[:10]).code == 0
    assert [s["id"] for s in ijfs("log", "main", "--json").json["snapshots"]][1] == history.second
    ijfs("tag", "-d", "kept")
    ijfs("rm", history.second)
    assert ijfs("gc", "-q").code == 0
    assert ijfs("tag", "kept", history.second[:10]).code == 1


def test_a_history_with_a_snapshot_removed_in_its_middle_stays_one_tree(ijfs: Ijfs, history: History) -> None:
    assert ijfs("rm", history.second).code == 0
    rows = [line.split("  ")[0] for line in ijfs("tree").out.splitlines() if "●" in line]
    assert rows == [f"● {history.first[:10]}", f"├─● {history.side[:10]}", f"● {history.third[:10]}"]
    assert ijfs("log", "main", "--json").json["snapshots"][0]["parents"] == [history.first]
    assert [s["id"] for s in ijfs("log", "main", "--json").json["snapshots"]] == [history.third, history.first]


def test_prune_drops_branches_that_nobody_named(ijfs: Ijfs, history: History, repo: Path) -> None:
    with Repository.open(repo) as repository:
        kept = repository.refs.set_aside("main", repository.resolve("main"))
    planned = ijfs("prune", "--unnamed-older-than", "0s", "-n", "--json").json
    check(planned, "prune")
    assert [one["name"] for one in planned["branches"]] == [kept]
    assert f"drop    branch {kept}" in ijfs("prune", "--unnamed-older-than", "0s", "-n").out
    assert ijfs("prune", "--unnamed-older-than", "2w", "--json").json["branches"] == []
    assert ijfs("prune", "--unnamed-older-than", "0s", "--json").json["branches"] == planned["branches"]
    assert kept not in ijfs("branch", "--json").json["branches"]
    assert ijfs("prune", "--unnamed-older-than", "soon").code == 2


def test_prune_says_first_what_it_would_remove_and_why_the_rest_stays(ijfs: Ijfs, history: History) -> None:
    planned = ijfs("prune", "--keep-last", "1", "--dry-run", "--json").json
    check(planned, "prune")
    assert set(planned["removed"]) == {history.first, history.second}
    out = ijfs("prune", "--keep-last", "1", "-n").out
    assert "head of main" in out
    assert ijfs("log", "--json").json["snapshots"][-1]["id"] == history.first
    assert ijfs("prune", "--keep-last", "1", "--json").json["removed"] == planned["removed"]
    assert {s["id"] for s in ijfs("log", "--json").json["snapshots"]} == {history.third, history.side}
    nothing = ijfs("prune")
    assert nothing.code == 1
    assert "--keep-last" in nothing.err


def test_gc_brings_the_bytes_of_a_removed_branch_back(ijfs: Ijfs, history: History, repo: Path) -> None:
    ijfs("rm", "side")
    check(ijfs("gc", "--dry-run", "--json").json, "gc")
    before = _disk(repo)
    data = ijfs("gc", "--json").json
    check(data, "gc")
    assert data["freed"] >= 200_000
    assert before - _disk(repo) >= 190_000
    assert ijfs("show", history.side).code == 1
    assert ijfs("fsck").code == 0


def _disk(top: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in top.rglob("*") if p.is_file() and p.name != "data.mdb")


def test_du_tells_shared_from_unique_bytes(ijfs: Ijfs, history: History) -> None:
    data = ijfs("du", "main", "side", "--json").json
    check(data, "du")
    main, side = data["snapshots"]
    assert main["logical"] >= 300_000
    assert side["unique"] >= 200_000
    assert main["shared"] >= 290_000
    assert 0.5 < data["sharing"] <= 1
    out = ijfs("du").out
    assert out.splitlines()[0].split() == ["SNAPSHOT", "HOLDS", "ALONE", "MESSAGE"]
    assert "4 snapshots hold" in out
    assert "[side]" in out
    assert history.third[:10] in out
    alone = {u["id"][:10]: u["unique"] for u in ijfs("du", "--json").json["snapshots"]}
    assert [line.split()[0] for line in out.splitlines()[1:5]] == sorted(alone, key=lambda i: -alone[i])
    assert ijfs("du", "-v").out.split()[:5] == ["SNAPSHOT", "LOGICAL", "STORED", "UNIQUE", "SHARED"]


def test_stats_counts(ijfs: Ijfs, history: History) -> None:
    data = ijfs("stats", "--json").json
    check(data, "stats")
    assert (data["snapshots"], data["branches"]) == (4, 2)
    assert "4 on 2 branches" in ijfs("stats").out


def test_fsck_is_content_with_a_sound_repository(ijfs: Ijfs, history: History) -> None:
    result = ijfs("fsck")
    assert result.code == 0
    assert result.out.startswith("whole: 4 snapshots")
    assert "cannot be read" not in ijfs("log").out
    check(ijfs("fsck", "--quick", "--json").json, "fsck")


def test_a_damaged_frame_is_named_and_other_snapshots_stay_readable(ijfs: Ijfs, history: History, repo: Path) -> None:
    _damage(repo, (history.work / "side.bin").read_bytes()[1000:1032])
    result = ijfs("fsck", "--json")
    check(result.json, "fsck")
    assert result.code == 1
    assert result.json["clean"] is False
    assert any(history.side in d["snapshots"] for d in result.json["damage"])
    assert history.side[:10] in ijfs("fsck").out
    broken = ijfs("cat", "side", "files/side.bin", "--json")
    assert broken.code == 1
    assert broken.json["error"]["type"] == "CorruptError"
    assert ijfs("cat", "main", "files/hello.txt").out == "hello, world\n"


def test_many_faults_are_not_all_printed(
    ijfs: Ijfs, history: History, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack that is cut short is a fault for each frame behind the cut; whom it hurts comes first."""
    monkeypatch.setattr("ijfs.cli.verbs.fsck.MOST", 3)
    largest = max((repo / "packs").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, 100)
    faults = len(ijfs("fsck", "--json").json["damage"])
    shown = ijfs("fsck").out
    assert shown.count("frame: ") == 3
    assert f"and {faults - 3} more" in shown
    assert shown.splitlines()[1].startswith("  hurts ")
    assert "cannot be read: `ijfs fsck` says why" in ijfs("log").out
    everything = ijfs("fsck", "-v").out
    assert everything.count("frame: ") == faults - 1
    assert everything.count("pack: the pack is shorter than its ") == 1
    repaired = ijfs("fsck", "--repair")
    assert repaired.code == 1, "the bytes are gone, and snapshots need them"
    assert "left: " in repaired.out


def _damage(repo: Path, needle: bytes) -> None:
    """Flip a byte of incompressible content where a pack has it."""
    for path in (p for p in repo.rglob("*") if p.is_file()):
        data = path.read_bytes()
        at = data.find(needle)
        if at >= 0:
            path.chmod(0o600)
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            return
    raise AssertionError("the bytes are in no pack")


def test_a_lost_index_is_rebuilt_from_the_packs(ijfs: Ijfs, history: History, repo: Path) -> None:
    shutil.rmtree(repo / "index")
    (repo / "index").mkdir(mode=0o700)
    assert ijfs("fsck", "--repair").code == 0
    assert ijfs("cat", "main", "files/hello.txt").out == "hello, world\n"
    assert ijfs("fsck").code == 0


# --- Memory


def image_set(directory: Path, pages: dict[int, bytes], *, pid: int = 7) -> None:
    """CRIU's files as ijfs reads them: an inventory, a pagemap with one entry for each run, the pages."""
    directory.mkdir(exist_ok=True)
    (directory / "inventory.img").write_bytes(struct.pack("<II", 0x54564319, 0x58313116))
    (directory / "pstree.img").write_bytes(struct.pack("<II", 0x54564319, 0x50273030))
    entries = [_message(b"\x08\x01")]
    body = b""
    for address in sorted(pages):
        entries.append(_message(b"\x08" + _varint(address) + b"\x10\x01\x20\x04"))
        body += pages[address]
    (directory / f"pagemap-{pid}.img").write_bytes(struct.pack("<II", 0x54564319, 0x56084025) + b"".join(entries))
    (directory / "pages-1.img").write_bytes(body)


def _message(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_images_are_recognised_and_their_memory_is_compared_by_address(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    base = 0x7F00_0000_0000
    pages = {base + i * PAGE: os.urandom(PAGE) for i in range(600)}
    image_set(tmp_path / "img", pages)
    assert ijfs("import", tmp_path / "img", "-m", "before").code == 0
    pages[base + 3 * PAGE] = os.urandom(PAGE)
    pages[base + 300 * PAGE] = os.urandom(PAGE)
    pages[base + 4 * PAGE] = os.urandom(PAGE)
    del pages[base + 599 * PAGE]
    pages[base + 900 * PAGE] = os.urandom(PAGE)
    image_set(tmp_path / "img", pages)
    assert ijfs("import", tmp_path / "img", "-m", "after").code == 0

    data = ijfs("diff", "main~1", "main", "--json").json
    check(data, "diff")
    (memory,) = data["memory"]
    assert (memory["old_pages"], memory["new_pages"]) == (600, 600)
    assert (memory["same"], memory["changed"], memory["added"], memory["removed"]) == (596, 3, 1, 1)
    assert memory["runs"] == [
        {"address": base + 3 * PAGE, "pages": 2},
        {"address": base + 300 * PAGE, "pages": 1},
        {"address": base + 900 * PAGE, "pages": 1},
    ]
    assert data["files"] == []
    assert "process 7" in ijfs("diff", "main~1", "main").out
    assert "0x7f0000003000  8.19 kB" in ijfs("diff", "-v", "main~1", "main").out

    ijfs("export", "main:images", tmp_path / "back")
    for name in ("inventory.img", "pstree.img", "pagemap-7.img", "pages-1.img"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "img" / name).read_bytes()


# --- Where an import goes


@pytest.fixture
def place(ijfs: Ijfs, repo: Path, tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Import a directory whose content is never the same twice; the JSON."""
    (tmp_path / "exp").mkdir()

    def call(*options: str) -> dict[str, object]:
        (tmp_path / "exp" / "n").write_bytes(os.urandom(8))
        result = ijfs("import", tmp_path / "exp", "--json", *options)
        assert result.code == 0, result.err
        check(result.json, "import")
        return result.json

    return call


def test_an_import_never_leaves_a_snapshot_without_a_branch(
    place: Callable[..., dict[str, object]], ijfs: Ijfs
) -> None:
    one = place()
    two = place()
    assert (one["branch"], two["branch"], two["parent"]) == ("main", "main", one["snapshot"])
    aside = place("--parent", str(one["snapshot"]))
    assert (aside["branch"], aside["parent"]) == ("exp", one["snapshot"])
    again = place("--parent", str(one["snapshot"]))
    assert again["branch"] == "exp-2"
    follows = place("--parent", "exp")
    assert (follows["branch"], follows["parent"]) == ("exp", aside["snapshot"])
    assert place("--branch", "new")["parent"] is None
    before = ijfs("branch", "--json").json["branches"]
    refused = ijfs("import", ".", "--parent", str(one["snapshot"]), "--branch", "main")
    assert refused.code == 1
    assert ijfs("branch", "--json").json["branches"] == before
    assert len(ijfs("log", "--json").json["snapshots"]) == 6


# --- Pipes


def test_a_pipe_that_closes_early_ends_a_long_listing_quietly(history: History, run_ijfs: Ijfs) -> None:
    for verb in ("cat main files/raw.bin", "log -v", "ls -R main --json"):
        script = f"set -o pipefail; {' '.join(COMMAND)} {verb} | head -c 5 >/dev/null"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stderr == "", verb
        assert done.returncode in (0, 141), verb


def test_nothing_of_progress_reaches_a_pipe(run_ijfs: Ijfs, history: History) -> None:
    result = run_ijfs("import", history.work, "-m", "again")
    assert result.code == 0
    assert result.err == ""
    assert result.out.count("\n") == 1
    assert "\x1b" not in result.out


# --- Bad luck


def test_gc_recompress_says_what_it_would_do_and_did(ijfs: Ijfs, repo: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    (tmp_path / "d").mkdir()
    lines = (f"value {rng.randrange(999)} of self in return {rng.randrange(9)}\n" for _ in range(20_000))
    (tmp_path / "d" / "log").write_text("".join(lines))
    ijfs("import", tmp_path / "d", "--branch", "text")
    before = _disk(repo)
    expected = ijfs("gc", "--recompress", "--dry-run")
    assert "packed smaller" in expected.out
    assert _disk(repo) == before
    data = ijfs("gc", "--recompress", "--json").json
    check(data, "gc")
    assert data["chunks_recompressed"] >= 1
    assert before - _disk(repo) >= 4096
    assert ijfs("fsck").code == 0


def test_a_gc_beside_a_gc_exits_11(ijfs: Ijfs, history: History, repo: Path) -> None:
    import fcntl

    with (repo / "locks" / "gc").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = ijfs("gc")
    assert result.code == 11
    assert result.err.startswith("ijfs: ")
    assert ijfs("gc").code == 0


@pytest.mark.root
def test_a_disk_that_is_full_loses_nothing(run_ijfs: Ijfs, ijfs: Ijfs, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "small").write_bytes(b"fits")
        assert ijfs("-r", disk / "r", "init").code == 0
        assert ijfs("-r", disk / "r", "import", tmp_path / "d").code == 0
        (tmp_path / "d" / "large").write_bytes(os.urandom(16 << 20))
        result = run_ijfs("-r", disk / "r", "import", tmp_path / "d")
        assert result.code == 1
        assert "no space left" in result.err.lower()
        assert "Traceback" not in result.err
        assert len(ijfs("-r", disk / "r", "log", "--json").json["snapshots"]) == 1
        assert ijfs("-r", disk / "r", "cat", "main", "files/small").out == "fits"
        assert ijfs("-r", disk / "r", "fsck").code == 0
        assert ijfs("-r", disk / "r", "gc").code == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_interrupted_import_leaves_the_repository_as_it_was(
    ijfs: Ijfs, history: History, repo: Path, tmp_path: Path
) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "f").write_bytes(os.urandom(64 << 20))
    process = subprocess.Popen([*COMMAND, "import", tmp_path / "big"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert eventually(lambda: list((repo / "sessions").iterdir()), 30, every_s=0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    if process.returncode:  # a fast machine may have been done
        assert process.returncode == 130
        assert len(ijfs("log", "--json").json["snapshots"]) == 4
    assert ijfs("fsck").code == 0


# --- On a terminal


@pytest.mark.parametrize("width", [44, 60, 100])
def test_a_terminal_gets_colours_and_lines_that_fit_it(
    ijfs: Ijfs, history: History, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    assert ijfs("import", history.work, "-m", "a message that is much longer than any terminal " * 3).code == 0
    for verb in ("tree", "log", "branch"):
        out = ijfs(verb).out
        assert "\x1b[" in out
        plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
        rows = [line for line in plain.splitlines() if "snapshots, " not in line and not line.startswith("/")]
        assert max(map(len, rows)) <= width, verb
        assert "…" in plain
        assert "[main]" in plain or verb == "branch"


def test_no_color_is_respected(ijfs: Ijfs, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", ijfs("tree").out)


def test_a_message_and_a_directory_that_are_not_utf_8_are_kept_visibly(repo: Path, tmp_path: Path, ijfs: Ijfs) -> None:
    tree = tmp_path / os.fsdecode(b"caf\xe9")
    tree.mkdir()
    ijfs("import", tree)
    ijfs("import", tree, "-m", os.fsdecode(b"th\xe9 message"))
    messages = [one["message"] for one in ijfs("log", "--json").json["snapshots"]]
    assert messages == ["th\\xe9 message", "import caf\\xe9"]


def test_a_name_as_it_is_shown_leads_to_its_file(repo: Path, tmp_path: Path, ijfs: Ijfs) -> None:
    tree = tmp_path / "tree"
    below = tree / os.fsdecode(b"dir\xfe")
    below.mkdir(parents=True)
    for name in (
        "bad\udcff",
        "new\nline",
        "bell\x07",
        "\x85",
        r"back\x41",
        r"both\xff",
        "both\udcff",
        "right-to-left\u202e",
    ):
        (below / name).write_text(ascii(name))
    ijfs("import", tree)
    assert ijfs("cat", "main", r"files/dir\xfe/bad\xff").out == ascii("bad\udcff")
    assert ijfs("cat", "main", r"files/dir\udcfe/bad\udcff").out == ascii("bad\udcff")
    assert ijfs("cat", "main", r"files/dir\xfe/new\nline").out == ascii("new\nline")
    assert ijfs("cat", "main", r"files/dir\xfe/bell\x07").out == ascii("bell\x07")
    assert ijfs("cat", "main", r"files/dir\xfe/right-to-left\u202e").out == ascii("right-to-left\u202e")
    # What is shown so comes first; a backslash of the name itself is shown twice.
    path = os.fsdecode(b"files/dir\xfe/")
    assert ijfs("cat", "main", path + r"both\xff").out == ascii("both\udcff")
    assert ijfs("cat", "main", path + r"both\\xff").out == ascii(r"both\xff")
    assert ijfs("cat", "main", path + r"back\x41").out == ascii(r"back\x41")
    assert ijfs("cat", "main", path + r"\x85").out == ascii("\x85")
    assert "bell" in ijfs("ls", "main", r"files/dir\xfe").out
    assert ijfs("export", r"main:files/dir\xfe", tmp_path / "out").code == 0
    failed = ijfs("cat", "main", r"files/dir\xfe/nothing\xff")
    assert failed.code == 1
    assert "InternalError" not in failed.err


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_snapshots_prefix_does_not_become_a_name_by_mistake(
    repo: Path, tmp_path: Path, ijfs: Ijfs, kind: str
) -> None:
    (tmp_path / "tree").mkdir()
    prefix = ijfs("import", tmp_path / "tree", "--json").json["snapshot"][:6]
    refused = ijfs(kind, prefix)
    assert refused.code == 1
    assert f"begins the id of a snapshot ({prefix}" in refused.err
    assert f"`ijfs {kind} NAME {prefix}`" in refused.err
    assert ijfs(kind, "-f", prefix).code == 0
    assert ijfs(kind, "cafe" if prefix[:4] != "cafe" else "beef").code == 0
