"""Verbs on live programs: real sandboxes, real CRIU, one plain program and one kernel for all of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import pytest
from calls import Ijfs, Result
from json_page import check
from waiting import eventually, patient

from ijfs.cli.verbs import logs
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.record_file import read_record, write_record
from ijfs.live.model.records import WENT_DOWN
from ijfs.live.process.keeper_lock import is_kept

pytestmark = [pytest.mark.root, pytest.mark.criu]

COUNTER = "import time\nfor i in range(10**6):\n    print(i, flush=True)\n    time.sleep(0.02)\n"

SERVER = """
import http.server, threading
server = http.server.HTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
"""


def ok(result: Result, section: str) -> dict[str, object]:
    """The JSON of a verb that worked, checked against the page."""
    assert result.code == 0, result.out + result.err
    check(result.json, section)
    return result.json


def until(ijfs: Ijfs, *argv: str, holds: str) -> str:
    """Call a verb until its output holds something; a program takes a moment to say it."""
    deadline = time.monotonic() + patient(20)
    while holds not in (out := ijfs(*argv).out):
        assert time.monotonic() < deadline, out
        time.sleep(0.05)
    return out


def test_a_program_runs_as_the_user_that_is_named(ijfs: Ijfs, live: Path) -> None:
    assert ijfs("run", "--user", "65534", "--name", "u", "-q", "--", "sh", "-c", "id -u; exec sleep 600").code == 0
    until(ijfs, "logs", "u", holds="65534\n")
    assert ijfs("exec", "u", "--", "id", "-u").out == "65534\n"
    unknown = ijfs("run", "--user", "never-heard-of", "--", "true")
    assert (unknown.code, "no user of this name" in unknown.err) == (1, True)


def test_what_ended_with_the_machine_comes_back(ijfs: Ijfs, live: Path) -> None:
    for name in ("saved", "never"):
        assert ijfs("run", "--name", name, "-q", "--", "sleep", "600").code == 0
    one = str(ok(ijfs("save", "saved", "--json"), "save")["snapshot"])
    assert ijfs("exec", "saved", "--", "sh", "-c", "echo late > /var/late").code == 0
    assert ijfs("stop", "--all", "-q").code == 0
    for name in ("saved", "never"):  # what a reboot leaves: a record of another boot, of a program that ran
        paths = InstancePaths.of(live, name)
        assert eventually(lambda paths=paths: not is_kept(paths))
        write_record(paths, msgspec.structs.replace(read_record(paths), status="running", boot_id="another"))
    back = ijfs("restore", "--lost", "--json")
    check(back.json, "restore")
    assert (back.code, "never: it was never saved" in back.err) == (3, True)
    assert [(i["name"], i["status"], i["snapshot"]) for i in back.json["instances"]] == [("saved", "running", one)]
    assert ijfs("cat", "saved.ended", "/var/late").out == "late\n"
    assert ijfs("restore", "--lost", "saved").code == 2
    assert ijfs("stop", "--rm", "never", "-q").code == 0
    assert ijfs("restore", "--lost").out == "nothing ended with the machine\n"


@pytest.mark.parametrize("first", ["keeper", "program"])
def test_what_was_told_to_end_with_the_machine_is_lost_after_a_reboot(ijfs: Ijfs, live: Path, first: str) -> None:
    """systemd sends SIGTERM to keepers and programs, in no order."""
    assert (
        ijfs("run", "--name", "p", "-q", "--", "sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.05; done").code
        == 0
    )
    one = str(ok(ijfs("save", "p", "--json"), "save")["snapshot"])
    paths = InstancePaths.of(live, "p")
    record = read_record(paths)
    assert record.keeper is not None
    assert record.program is not None
    pids = [record.keeper.pid, record.program.pid]
    for pid in pids if first == "keeper" else reversed(pids):
        os.kill(pid, signal.SIGTERM)
    assert eventually(lambda: not is_kept(paths))
    ended = read_record(paths)
    assert (ended.status, ended.note) == ("exited", WENT_DOWN)
    assert ijfs("restore", "--lost").out == "nothing ended with the machine\n", "it runs yet"
    write_record(paths, msgspec.structs.replace(ended, boot_id="another"))
    assert "ended with the machine: p" in ijfs("doctor").out
    back = ijfs("restore", "--lost", "--json")
    assert [(i["name"], i["status"], i["snapshot"]) for i in back.json["instances"]] == [("p", "running", one)]


def test_a_fork_that_ended_unsaved_is_told_what_it_can_go_on_from(ijfs: Ijfs, live: Path) -> None:
    assert ijfs("run", "--name", "p", "-q", "--", "sleep", "600").code == 0
    forked = ok(ijfs("fork", "p", "--names", "copy", "--json"), "fork")
    began = str(forked["instances"][0]["snapshot"])  # type: ignore[index]
    assert ijfs("exec", "copy", "--", "touch", "/var/mine").code == 0
    assert ijfs("stop", "copy", "-q").code == 0
    for _ in range(2):
        said = ijfs("restore", "copy").err
        assert "its memory was never saved" in said
        assert f"`ijfs restore {began[:10]} --name copy2`" in said
        ijfs("save", "copy")  # keeps its files, and no memory
    assert ijfs("stop", "--rm", "copy", "-q").code == 0


def test_what_an_ended_program_wrote_is_forgotten_only_by_its_name(ijfs: Ijfs, live: Path) -> None:
    """`--all` is about what is live: it took the files of programs along that had ended before."""
    assert ijfs("run", "--name", "wrote", "-q", "--", "sh", "-c", "echo mine > /var/mine; exec sleep 600").code == 0
    assert ijfs("run", "--name", "other", "-q", "--", "sleep", "600").code == 0
    assert eventually(lambda: ijfs("cat", "wrote", "/var/mine").code == 0)
    assert ijfs("stop", "wrote", "-q").code == 0
    said = ijfs("stop", "--all", "--rm").out
    assert "forgot other" in said
    assert "`wrote` has ended, and 1 file that is in no snapshot is still there: /var/mine; it stays" in said
    assert ijfs("cat", "wrote", "/var/mine").out == "mine\n"
    told = ijfs("stop", "--rm", "wrote").out
    assert "forgot wrote" in told
    assert "gone with it: `wrote` has ended, and 1 file" in told
    assert ijfs("run", "--name", "again", "-q", "--", "sh", "-c", "echo mine > /var/mine").code == 0
    assert eventually(lambda: ijfs("ps", "-a", "-q").out == "again\n" and ijfs("ps", "-q").out == "")
    assert "1 file that is in no snapshot" in ijfs("run", "--replace", "--name", "again", "--", "true").err
    assert ijfs("stop", "--rm", "again", "-q").code == 0
    assert ijfs("ps", "-a", "-q").out == ""


def test_going_back_in_place_says_what_is_gone_or_saves_it_first(ijfs: Ijfs, live: Path) -> None:
    assert ijfs("run", "--name", "p", "-q", "--", "sh", "-c", "while :; do sleep 0.1; done").code == 0
    one = str(ok(ijfs("save", "p", "--json"), "save")["snapshot"])
    assert f"gone: what it did since {one[:10]}; `--save-first`" in ijfs("restore", "p", "--replace").out
    back = ok(ijfs("restore", one, "--replace", "--save-first", "--json"), "restore")
    left = str(back["instance"]["left"])  # type: ignore[index]
    assert [s["id"] for s in ok(ijfs("log", "--json"), "log")["snapshots"]] == [left, one]  # type: ignore[attr-defined]
    said = ijfs("restore", "p~1", "--replace", "--save-first").out
    assert f"runs from {one[:10]}" in said, "p~1 is what it was before the save"
    forward = said.partition("`ijfs ")[2].partition("`")[0].split()
    assert ijfs(*forward).out.startswith(f"p runs from {forward[1]}")
    assert ijfs("restore", one, "--name", "other", "--save-first").code == 2


def test_a_person_is_asked_before_a_live_program_goes_back(ijfs: Ijfs, live: Path, tmp_path: Path) -> None:
    assert ijfs("run", "--name", "p", "-q", "--", "sleep", "1000").code == 0
    one = str(ok(ijfs("save", "p", "--json"), "save")["snapshot"])
    pid = ok(ijfs("ps", "--json"), "ps")["instances"][0]["pid"]  # type: ignore[index]
    words = f"{sys.executable} -m ijfs.cli -r {live} restore {one} --replace"
    asked = subprocess.run(["script", "-qec", words, "/dev/null"], input="n\n", capture_output=True, text=True)
    assert "`p` is live and loses what it did since" in asked.stdout
    assert asked.returncode == 1
    assert ok(ijfs("ps", "--json"), "ps")["instances"][0]["pid"] == pid  # type: ignore[index]
    told = subprocess.run(["script", "-qec", f"{words} -y", "/dev/null"], capture_output=True, text=True)
    assert (told.returncode, "Go back?" in told.stdout) == (0, False)


def test_a_person_is_asked_before_a_live_program_ends_and_what_goes_is_named(ijfs: Ijfs, live: Path) -> None:
    words = ("sh", "-c", "echo x > /dev/shm/x; echo up; exec sleep 1000")
    assert ijfs("run", "--name", "p", "-q", "--", *words).code == 0
    until(ijfs, "logs", "p", holds="up\n")
    loses = "all that it did: its memory and 1 file in /dev/shm"
    command = f"{sys.executable} -m ijfs.cli -r {live} stop p"
    asked = subprocess.run(["script", "-qec", command, "/dev/null"], input="n\n", capture_output=True, text=True)
    assert f"`p` is live and loses {loses}. Stop it?" in asked.stdout
    assert "nothing was changed" in asked.stdout
    assert asked.returncode == 1
    one = str(ok(ijfs("save", "p", "--json"), "save")["snapshot"])
    assert "p  runs on from here" in ijfs("show", "p").out
    told = subprocess.run(["script", "-qec", f"{command} -y", "/dev/null"], capture_output=True, text=True)
    assert (told.returncode, "Stop it?" in told.stdout) == (0, False)
    assert f"gone: what it did since {one[:10]}: its memory and 1 file in /dev/shm" in told.stdout
    assert "gone:" not in ijfs("stop", "--rm", "p").out, "it had ended"
    assert "runs on" not in ijfs("show", "p").out

    assert ijfs("restore", one, "--name", "copy", "-q").code == 0
    assert f"since {one[:10]}: its memory and 1 file in /dev/shm; " in ijfs("stop", "--rm", "copy").out, "no file"
    assert ijfs("restore", one, "--name", "copy", "-q").code == 0
    assert ijfs("exec", "copy", "--", "touch", "/root/ijfs-new").code == 0
    assert "its memory, 1 file in /dev/shm and what it wrote; " in ijfs("stop", "--rm", "copy").out
    assert ijfs("restore", one, "--name", "copy", "-q").code == 0
    assert ijfs("save", "copy", "--stop", "-q").code == 0
    shown = ijfs("ps", "-a").out
    assert "and stopped" in shown
    assert "exited" not in shown


def test_a_program_is_run_saved_forked_killed_and_restored(ijfs: Ijfs, run_ijfs: Ijfs, live: Path) -> None:
    started = ok(run_ijfs("run", "--name", "count", "--json", "--", "python3", "-c", COUNTER), "run")
    assert started["instance"]["status"] == "running"  # type: ignore[index]
    until(ijfs, "logs", "count", holds="3\n")
    saved = ok(ijfs("save", "count", "-m", "early", "--json"), "save")
    assert saved["parent"] is None
    assert saved["branch"] == "count"
    forked = ok(ijfs("fork", "count", "--names", "a,b", "-m", "twins", "--json"), "fork")
    assert [i["name"] for i in forked["instances"]] == ["a", "b"]  # type: ignore[attr-defined]
    listed = ok(ijfs("ps", "--json"), "ps")["instances"]
    assert [(i["name"], i["status"]) for i in listed] == [  # type: ignore[attr-defined]
        ("a", "running"),
        ("b", "running"),
        ("count", "running"),
    ]
    out = ijfs("ps").out
    assert set(out.splitlines()[0].split()) - {"STATUS"} == {"NAME", "UP", "SNAPSHOT", "PID", "PROGRAM"}

    os.kill(next(i["pid"] for i in listed if i["name"] == "a"), 9)  # type: ignore[attr-defined]
    until(ijfs, "ps", "-a", holds="exited 137")
    assert "ended: a; `ijfs ps -a`" in ijfs("ps").out
    assert ijfs("exec", "a", "--", "true").code == 13
    assert ijfs("save", "a").code == 13
    restored = ok(ijfs("restore", "latest", "--name", "a", "--wait", "--json"), "restore")
    assert restored["instance"]["memory"] == 1.0  # type: ignore[index]
    same = ijfs("restore", "count~1", "--json").json
    assert same["instance"]["name"] == "count-2", "the name it was saved under is taken by the original"

    drawn = ijfs("tree").out
    assert "[count] ▶  ▶ a, b " in drawn
    assert "▶ count-2 " in drawn
    assert "4 live" in drawn
    check(ijfs("tree", "--json").json, "tree")
    check(ijfs("show", "count", "--json").json, "show")
    assert "program   count" in ijfs("show", "count").out
    memory = ok(ijfs("diff", "count~1", "count", "--json"), "diff")["memory"]
    assert memory
    assert all(m["same"] > 0 for m in memory)  # type: ignore[attr-defined]

    for words in (["b", "nosuch"], ["--rm", "b", "nosuch"], ["b*", "nosuch"]):
        assert ijfs("stop", *words).code == 1
    assert [i["status"] for i in ijfs("ps", "--json").json["instances"] if i["name"] == "b"] == ["running"]
    assert ijfs("tag", "b").code == 1, "most likely `ijfs tag NAME b` was meant"
    stopped = ok(ijfs("stop", "b", "--json"), "stop")
    assert stopped["stopped"] == [{"name": "b", "exit_status": 143, "forgotten": False}]
    again = ijfs("stop", "b")
    assert again.code == 13
    assert "--rm" in again.err
    assert ijfs("logs", "b").out.startswith("0\n1\n")
    assert ijfs("stop", "--ended").code == ijfs("stop", "--rm", "--ended", "count").code == 2
    assert ok(ijfs("stop", "--rm", "--ended", "--json"), "stop")["stopped"] == [
        {"name": "b", "exit_status": None, "forgotten": True}
    ]
    assert ijfs("logs", "b").code == 1


def test_what_is_run_inside_uses_the_sandbox_and_its_exit_code_comes_out(
    run_ijfs: Ijfs, live: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    assert run_ijfs("run", "--name", "s", "--", "sleep", "600").code == 0
    done = run_ijfs("exec", "s", "--", "sh", "-c", "cat; echo $$ > /tmp/mine; exit 7", stdin=b"in\n")
    assert (done.code, done.out) == (7, "in\n")
    assert run_ijfs("exec", "s", "--", "cat", "/tmp/mine").out.strip().isdigit()
    assert not Path("/tmp/mine").exists()
    assert run_ijfs("cp", "s:/tmp/mine", work).code == 0
    assert run_ijfs("cp", work / "mine", "s:/var/tmp/given").code == 0
    assert run_ijfs("exec", "s", "cat", "/var/tmp/given").out == (work / "mine").read_text()
    assert run_ijfs("exec", "s", "--", "readlink", "/proc/self/ns/net").out.strip() != os.readlink("/proc/self/ns/net")
    assert run_ijfs("exec", "s", "--", "no-such-program").code in (126, 127)
    assert run_ijfs("save", "s", "-q").code == 0
    assert run_ijfs("cat", "s", "/tmp/mine").out.strip().isdigit()
    assert run_ijfs("exec", "s", "sh", "-c", "echo unsaved > /tmp/late").code == 0
    assert run_ijfs("stop", "s").code == 0
    assert run_ijfs("cat", "--now", "s", "/tmp/late").out == "unsaved\n"
    assert run_ijfs("cp", "s:/tmp/late", "-").out == "unsaved\n"


def test_a_kernel_is_started_runs_cells_and_goes_back_in_place(
    ijfs: Ijfs, run_ijfs: Ijfs, live: Path, tmp_path: Path
) -> None:
    started = ok(ijfs("kernel", "start", "--name", "k", "--port", "8000", "--json"), "kernel start")
    assert Path(started["instance"]["connection_file"]).is_file()  # type: ignore[index]
    assert ijfs("exec", "k", "-c", SERVER).code == 0
    [port] = [port["host"] for port in started["instance"]["relay"] if port["inside"] == 8000]  # type: ignore[index]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.status == 200
    cell = ok(ijfs("exec", "k", "-c", "x = 20; print('said'); x + 1", "--json"), "exec")
    assert (cell["stdout"], cell["result"]) == ("said\n", "21")
    assert ijfs("exec", "k", "-c", "x + 1").out == "21\n"
    assert run_ijfs("exec", "k", "-", stdin=b"print(x * 2)\n").out == "40\n"
    failed = ijfs("exec", "k", "-c", "1/0")
    assert failed.code == 1
    assert "ZeroDivisionError" in failed.err
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert ijfs("save", "k", "-m", "x is 20", "--notebook", notebook).code == 0
    assert ijfs("cat", "k", "notebook.ipynb").out == notebook.read_text()
    assert ijfs("exec", "k", "-c", "x = 99; new = [1]").code == 0
    variables = ok(ijfs("diff", "--variables", "--json"), "diff")["variables"]
    changes = {one["name"]: one["change"] for one in variables}  # type: ignore[attr-defined]
    assert (changes["x"], changes["new"]) == ("changed", "added")
    assert "~ variable x  int" in ijfs("diff", "k", "--variables").out
    assert ijfs("restore", "k", "--replace").code == 0
    assert ijfs("exec", "k", "-c", "x").out == "20\n"
    assert ijfs("exec", "k", "--timeout", "0.3", "-c", "import time; time.sleep(5)").code == 1
    listed = ok(ijfs("kernel", "list", "--json"), "kernel list")
    assert [i["name"] for i in listed["instances"]] == ["k"]  # type: ignore[attr-defined]


def test_what_a_program_did_since_its_snapshot_is_said(
    ijfs: Ijfs, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("given").write_text("one\n")
    Path("kept").write_text("one\n")
    assert ijfs("run", "--name", "p", "-q", "--", "sleep", "600").code == 0
    assert ijfs("diff").out == "nothing differs\n"
    changes = "echo two >>given; echo x >kept; echo early >early; touch -d @1 stale; echo aa >bytes; touch -d @1 bytes"
    assert ijfs("exec", "p", "--", "sh", "-c", changes).code == 0
    assert "stands on no snapshot" in (before := ijfs("diff", "p")).err
    assert [line.rpartition("/")[2].split()[0] for line in before.out.splitlines()] == [
        *("bytes", "early", "given", "kept", "stale")
    ]
    saved = ok(ijfs("save", "p", "--json"), "save")["snapshot"]
    assert ijfs("diff", "p").out == "nothing differs\n"
    more = "rm given early; echo x >/dev/shm/s; mkdir new; echo n >new/n; echo bb >bytes; touch -d @1 bytes; touch kept"
    assert ijfs("exec", "p", "--", "sh", "-c", more).code == 0
    found = ok(ijfs("diff", "-p", "--json"), "diff")
    assert (found["old"], found["new"], found["memory"]) == (saved, "p", [])
    by_name = {os.path.basename(file["path"]): file for file in found["files"]}  # type: ignore[attr-defined]
    assert {name: file["change"] for name, file in by_name.items()} == {
        "given": "removed",
        "early": "removed",
        "bytes": "changed",
        "s": "added",
        "new": "added",
        "n": "added",
    }
    assert by_name["bytes"]["patch"].endswith("-aa\n+bb\n")
    assert ijfs("diff", "p", "--memory").code == 2
    assert ijfs("diff", "p", "--variables").code == 2
    assert ijfs("save", "p", "-q").code == 0
    two = ok(ijfs("diff", "p~1", "p", "--json"), "diff")["files"]
    assert {os.path.basename(file["path"]): file["change"] for file in two} == {  # type: ignore[attr-defined]
        name: file["change"] for name, file in by_name.items()
    }
    assert ijfs("exec", "p", "--", "rm", "new/n").code == 0
    assert ijfs("stop", "p", "-q").code == 0
    assert ijfs("diff", "p").out.split("/")[-1].startswith("n  ")


def test_a_programs_files_are_compared_with_the_machines_and_taken_home(
    ijfs: Ijfs, run_ijfs: Ijfs, live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    given = tmp_path / "work" / "given"
    given.write_text("one\n")
    time.sleep(0.05)  # what changes in the moment in which a program starts counts as changed after it
    script = "echo two >> given; echo x > /var/ijfs-test-elsewhere; echo out > out; exec sleep 600"
    assert run_ijfs("run", "--name", "writer", "--", "sh", "-c", script).code == 0
    until(ijfs, "diff", "writer", "host", holds="/out")
    compared = ok(ijfs("diff", "writer", "host", "-p", "--json"), "diff")
    by_name = {os.path.basename(file["path"]): file for file in compared["files"]}  # type: ignore[attr-defined]
    assert {name: file["change"] for name, file in by_name.items()} == {"given": "changed", "out": "added"}
    assert by_name["given"]["patch"].endswith("@@ -1 +1,2 @@\n one\n+two\n")
    planned = ok(ijfs("adopt", "writer", "--dry-run", "--json"), "adopt")
    assert planned["elsewhere"] >= 1
    assert os.listdir() == ["given"]
    given.write_text("mine\n")
    refused = ijfs("adopt", "writer")
    assert (refused.code, os.listdir()) == (1, ["given"])
    assert "--theirs" in refused.err
    taken = ok(ijfs("adopt", "writer", "--ours", "--json"), "adopt")
    assert [os.path.basename(file["path"]) for file in taken["files"]] == ["out"]  # type: ignore[attr-defined]
    assert (given.read_text(), Path("out").read_text()) == ("mine\n", "out\n")
    assert ijfs("adopt", "writer", "given", "--theirs").code == 0
    assert given.read_text() == "one\ntwo\n"
    assert "nothing to take home" in ijfs("adopt", "writer").out
    assert ijfs("adopt", "writer", "never").code == 1


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["save", "nobody"], 1, "nobody"),
        (["logs", "nobody"], 1, "nobody"),
        (["exec", "nobody", "--", "true"], 1, "nobody"),
        (["stop", "nobody"], 1, "nobody"),
        (["restore", "nobody"], 1, "nobody"),
        (["fork", "nobody"], 1, "nobody"),
        (["run", "--", "/no/such/program"], 2, "program"),
        (["run", "--name", "bad/name", "--", "true"], 2, "bad/name"),
        (["run", "--network", "everything", "--", "true"], 2, "everything"),
        (["fork", "x", "-n", "3", "--names", "a,b"], 2, "2 names"),
        (["exec", "x"], 2, "what to run"),
        (["exec", "x", "-c", "1", "--", "true"], 2, "what to run"),
        (["kernel", "start", "--kernel", "no-such-spec"], 2, "no-such-spec"),
        (["kernel", "remove", "no-such-spec"], 2, "no-such-spec"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    ijfs: Ijfs, live: Path, argv: list[str], code: int, said: str
) -> None:
    result = ijfs(*argv)
    assert said in result.err
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    assert "unexpected" not in result.err
    assert ijfs("ps", "--json").json["instances"] == [], "nothing half made is left"


def test_a_snapshot_that_was_imported_cannot_be_restored_and_says_so(ijfs: Ijfs, live: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("x")
    assert ijfs("import", tmp_path / "d").code == 0
    result = ijfs("restore", "main")
    assert result.code == 2
    assert "not a snapshot of a program" in result.err


def test_a_save_that_is_not_waited_for_is_shown_until_it_is_durable(run_ijfs: Ijfs, live: Path) -> None:
    assert run_ijfs("run", "--name", "q", "--", "sleep", "600").code == 0
    early = ok(run_ijfs("save", "q", "--no-wait", "--json"), "save")
    assert (early["snapshot"], early["durable_s"], early["stored_bytes"]) == (None, None, None)
    assert run_ijfs("save", "q", "--no-wait").out.startswith("saving  (no message)  [q]")
    assert run_ijfs("save", "q", "--no-wait", "--stop").code == 2
    assert run_ijfs("stop", "q").code == 0
    assert len(run_ijfs("log", "--json").json["snapshots"]) == 2


def test_the_spare_is_shown_and_ended(ijfs: Ijfs, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ok(ijfs("ps", "--json"), "ps")["spare"] is None
    monkeypatch.setenv("IJFS_SPARE_S", "60")
    assert ijfs("run", "--name", "s", "--", "sleep", "600").code == 0
    assert "`ijfs stop --all` ends it" in until(ijfs, "ps", "-v", holds="a spare waits")
    assert "`ijfs stop --all` ends it" in ijfs("doctor", "-v").out
    assert ok(ijfs("ps", "--json"), "ps")["spare"]
    assert ijfs("stop", "--all").code == 0
    assert "spare" not in ijfs("ps", "-v").out


def test_logs_follow_until_the_program_ends(run_ijfs: Ijfs, live: Path) -> None:
    script = "import time\nfor i in range(5):\n    print('line', i, flush=True)\n    time.sleep(0.2)\n"
    assert run_ijfs("run", "--name", "brief", "--", "python3", "-c", script).code == 0
    followed = run_ijfs("logs", "-f", "brief")
    assert followed.out.splitlines() == [f"line {i}" for i in range(5)]
    assert run_ijfs("logs", "-n", "2", "brief").out.splitlines() == ["line 3", "line 4"]
    check(run_ijfs("logs", "brief", "--json").json, "logs")


def test_logs_end_where_the_log_ended_when_they_were_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo\nthree\n")
    start, end = logs._part(log, 1)
    rest = logs._rest(log, start, end)
    with log.open("ab") as file:
        file.write(b"four\n")
    assert b"".join(rest) == b"three\n"
    assert b"".join(logs._rest(log, start)) == b"three\nfour\n"


def test_watch_prints_what_happens_and_runs_a_command_for_it(ijfs: Ijfs, live: Path, tmp_path: Path) -> None:
    hook = f'cat >> {tmp_path}/hooked; echo "$IJFS_EVENT $IJFS_EVENT_PROGRAM" >> {tmp_path}/named'
    command = [sys.executable, "-m", "ijfs.cli", "-r", str(live), "watch", "p", "--json", "--exec", hook]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    try:
        assert eventually(lambda: "anon_inode:inotify" in descriptors(watch.pid), 30)
        assert ijfs("run", "--name", "p", "-q", "--", "sleep", "1000").code == 0
        one = str(ok(ijfs("save", "p", "-m", "one", "--json"), "save")["snapshot"])
        while (event := json.loads(watch.stdout.readline()))["event"] != "saved":
            check(event, "watch")
        assert (event["instance"], event["snapshot"], event["text"]) == ("p", one, "one")
        assert eventually(lambda: "saved p" in (tmp_path / "named").read_text().splitlines(), 30)
        assert '"event": "saved"' in (tmp_path / "hooked").read_text()
    finally:
        watch.send_signal(signal.SIGINT)
        assert watch.wait(patient(20)) == 130
        watch.stdout.close()


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return found


def test_names_of_new_programs_are_free_ones(ijfs: Ijfs, live: Path) -> None:
    names = [ijfs("run", "--json", "--", "/bin/sleep", "600").json["instance"]["name"] for _ in range(3)]
    assert names == ["sleep", "sleep-2", "sleep-3"]


def test_kernel_specs_are_installed_listed_and_removed(ijfs: Ijfs, repo: Path) -> None:
    made = ok(ijfs("kernel", "install", "--json"), "kernel install")
    assert made["spec"]["name"] == "ijfs-python3"  # type: ignore[index]
    assert "gpu" not in made["spec"]["config"]  # type: ignore[index]
    again = ok(ijfs("kernel", "install", "--gpu", "--json"), "kernel install")
    assert again["spec"]["config"]["gpu"] is True  # type: ignore[index]
    assert "ijfs-python3" in ijfs("kernel", "list").out
    ok(ijfs("kernel", "remove", "ijfs-python3", "--json"), "kernel remove")
    assert "ijfs-python3" not in ijfs("kernel", "list").out


def test_a_log_that_is_followed_is_no_json(ijfs: Ijfs, repo: Path) -> None:
    result = ijfs("logs", "-f", "x", "--json")
    assert result.code == 2
    assert "--follow" in result.json["error"]["message"]


def test_a_program_that_fails_at_once_is_reported_with_its_last_words(run_ijfs: Ijfs, live: Path) -> None:
    failed = run_ijfs("run", "--name", "failed", "--json", "--", "sh", "-c", "echo no such thing; exit 7")
    assert failed.code == 13
    assert failed.json["instance"]["exit_status"] == 7  # type: ignore[index,call-overload]
    assert "`failed` has ended already, with exit status 7; its last words: no such thing" in failed.err
    well = run_ijfs("run", "--name", "well", "--", "true")
    assert well.code == 0
    assert "has ended already, with exit status 0" in well.err
