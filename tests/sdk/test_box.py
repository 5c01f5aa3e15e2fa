"""Live programs through the SDK: real kernels in real sandboxes."""

from __future__ import annotations

import random
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from live.live_env import LiveEnv
from looking import pids_of
from waiting import eventually, patient

import ijfs
from ijfs.sdk import forks

pytestmark = [pytest.mark.root, pytest.mark.criu]

PICTURE = """
class Picture:
    def _repr_png_(self): return b"\\x89PNG picture"
    def _repr_html_(self): return "<b>picture</b>"
display(Picture())
"""

SERVER = "import http.server as h; h.HTTPServer(('127.0.0.1', 8000), h.SimpleHTTPRequestHandler).serve_forever()"


# -- cells


def test_a_cell_gives_text_outputs_of_every_kind_and_its_error(box: ijfs.Box) -> None:
    streamed: list[dict[str, Any]] = []
    result = box.run("print('hi')\nprint('there')\n6 * 7", on_output=streamed.append)
    assert (result.ok, result.text, result.error) == (True, "hi\nthere\n42", "")
    assert [output["output_type"] for output in result.outputs] == ["stream", "execute_result"]
    assert "".join(output["text"] for output in streamed if output["output_type"] == "stream") == "hi\nthere\n"
    assert "text/html" in box.run(PICTURE).outputs[0]["data"]
    assert box.run(PICTURE).images() == [("image/png", b"\x89PNG picture")]
    failed = box.run("1 / 0")
    assert (failed.ok, failed.error_name) == (False, "ZeroDivisionError")
    assert failed.outputs[-1]["ename"] == "ZeroDivisionError"


def test_displays_that_are_updated_and_cleared_are_shown_as_they_end(box: ijfs.Box) -> None:
    result = box.run("h = display('one', display_id=True)\nh.update('two')")
    assert [output["data"]["text/plain"] for output in result.outputs] == ["'two'"]
    cleared = box.run("from IPython.display import clear_output\nprint('a')\nclear_output(wait=True)\nprint('b')")
    assert [output["text"] for output in cleared.outputs] == ["b\n"]


def test_a_cell_out_of_time_is_interrupted_and_the_kernel_keeps_its_state(box: ijfs.Box) -> None:
    box.run("kept = 1")
    with pytest.raises(ijfs.CellTimeoutError) as caught:
        box.run("kept += 1\nprint('begun', flush=True)\nimport time\nwhile True: time.sleep(0.01)", timeout=patient(2))
    assert caught.value.result is not None
    assert caught.value.result.stdout == "begun\n"
    assert caught.value.result.error_name == "KeyboardInterrupt"
    assert box.run("kept").text == "2"


def test_a_cell_that_prints_without_end_is_interrupted_too(box: ijfs.Box) -> None:
    with pytest.raises(ijfs.CellTimeoutError):
        box.run("while True: print('x' * 1000)", timeout=patient(1))
    assert box.run("'alive'").text == "'alive'"


def test_a_cell_may_be_left_running(box: ijfs.Box) -> None:
    begun: list[str] = []
    code = "print('begun', flush=True)\nimport os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nlate = True"
    while not begun:  # a slow machine may not have come to it in time
        with pytest.raises(ijfs.CellTimeoutError, match="it runs on"):
            box.run(code, timeout=1, interrupt=False, on_stream=lambda name, text: begun.append(text))
    box.files.write("go", "")
    assert box.run("late").text == "True"


def test_cells_are_for_kernels(repo: ijfs.Repository) -> None:
    with repo.start(["sleep", "1000"], cwd="/") as program:
        with pytest.raises(ijfs.NotAKernelError, match="is not a kernel"):
            program.run("1")
        program.stop(grace_s=0)
        with pytest.raises(ijfs.InstanceExitedError):
            program.run("1")
        assert not program.running
        program.stop()  # nothing to do


# -- commands


def test_a_command_has_input_output_and_a_status(box: ijfs.Box, live_env: LiveEnv) -> None:
    done = box.exec(["sh", "-c", "cat; pwd; echo bad >&2; exit 3"], input="said ")
    assert (done.exit_code, done.text, done.stderr) == (3, f"said {live_env.work}\n", b"bad\n")
    with pytest.raises(ijfs.CommandFailedError, match=r"status 3: bad"):
        done.check()
    assert box.exec(["printenv", "A"], env={"A": "given"}, cwd="/").text == "given\n"
    assert box.exec(["no-such-program"]).exit_code == 127


def test_binary_output_of_any_size_comes_whole(box: ijfs.Box) -> None:
    done = box.exec(["python3", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 40_000)"], check=True)
    assert done.stdout == bytes(range(256)) * 40_000


def test_a_command_out_of_time_is_killed_with_all_that_it_started(box: ijfs.Box) -> None:
    with pytest.raises(ijfs.CommandTimeoutError) as caught:
        box.exec(["sh", "-c", "echo begun; sleep 98765 & sleep 98765"], timeout=patient(2))
    assert (caught.value.completed.exit_code, caught.value.completed.stdout) == (137, b"begun\n")
    assert eventually(lambda: not pids_of(b"sleep 98765"))


def test_a_command_in_hand_is_talked_with_and_ended(box: ijfs.Box) -> None:
    with box.popen(["cat"]) as command:
        pieces = command.pieces()
        command.write("one")
        assert next(pieces) == ("stdout", b"one")
        command.write(b"two")
        assert next(pieces) == ("stdout", b"two")
        command.close_input()
        assert command.wait().stdout == b"onetwo"
    with box.popen(["sleep", "98764"]) as command:
        assert command.running
    assert eventually(lambda: not pids_of(b"sleep 98764"))


# -- files


def test_files_are_written_read_listed_and_removed(box: ijfs.Box, live_env: LiveEnv, tmp_path: Path) -> None:
    box.files.write("new/deep/a.bin", b"\0\1", mode=0o750)
    assert box.files.read(live_env.work / "new/deep/a.bin") == b"\0\1"
    assert box.exec(["stat", "-c", "%a", "new/deep/a.bin"]).text == "750\n"
    box.files.write("new/deep/a.bin", "text")
    assert (box.files.read_text("new/deep/a.bin"), box.files.info("new/deep/a.bin").mode) == ("text", 0o750)
    assert [(info.name, info.kind) for info in box.files.list("new")] == [("deep", "directory")]
    assert not (live_env.work / "new").exists(), "the host's files are not the sandbox's"
    box.files.download("new", tmp_path / "copy")
    assert (tmp_path / "copy/deep/a.bin").read_text() == "text"
    box.files.upload(tmp_path / "copy", "other")
    assert box.exec(["cat", "other/deep/a.bin"]).text == "text"
    box.files.rename("other/deep/a.bin", "moved/b.bin")
    box.files.remove("other")
    assert (box.files.exists("other"), box.files.exists("moved/b.bin")) == (False, True)
    with pytest.raises(ijfs.NoSuchFileError, match=r"there is no .*/none"):
        box.files.read("none")
    with pytest.raises(ijfs.FileError, match="not a regular file"):
        box.files.read("new")


def test_a_link_in_the_sandbox_never_leads_to_the_machines_files(box: ijfs.Box, live_env: LiveEnv) -> None:
    """Of a file of the machine the sandbox has a copy of its own once something is written to it; that one is read."""
    outside = live_env.work.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("the machine's")
    box.exec(["sh", "-c", f"ln -s {outside} way; ln -s ../../../../../../../..{outside} up"], check=True)
    box.exec(["sh", "-c", f"mkdir -p {outside}; echo its own >{outside}/secret"], check=True)
    for name in ("way", "up"):
        assert box.files.read(f"{name}/secret") == b"its own\n"
    box.files.write(outside / "made", "inside")
    assert not (outside / "made").exists()
    assert (outside / "secret").read_text() == "the machine's"
    assert box.files.read("way/made") == b"inside"


def test_a_fifo_does_not_hold_who_reads_it(box: ijfs.Box) -> None:
    box.exec(["mkfifo", "fifo"], check=True)
    with pytest.raises(ijfs.FileError):
        box.files.read("fifo")


def test_a_relayed_port_is_found(repo: ijfs.Repository) -> None:
    with repo.start(["python3", "-c", SERVER], ports=[8000], cwd="/") as server:
        with pytest.raises(ijfs.IjfsError, match=r"port 9 of .* is not relayed"):
            server.port(9)

        def answers() -> bool:
            try:
                return bool(urllib.request.urlopen(f"http://127.0.0.1:{server.port(8000)}/", timeout=60).status == 200)
            except OSError:  # it does not listen yet
                return False

        assert eventually(answers)


# -- moments


def test_a_moment_is_kept_forked_compared_and_gone_back_to(
    box: ijfs.Box, repo: ijfs.Repository, tmp_path: Path
) -> None:
    box.run("x = 1")
    first = box.save("first")
    assert first.saved is not None
    assert (first.saved.verified, first.message, first.program) == (None, "first", "shared")
    box.run("x = 2; open('note', 'w').write('second')")
    second = box.save("second", verify=True)
    assert second.saved is not None
    assert second.saved.verified, "it was restored, up to where it would have run"
    assert second.parents == [first]
    assert [(change.path.rpartition("/")[2], change.change) for change in second.diff(memory=False).files] == [
        ("note", "added")
    ]
    assert any(change.changed for change in repo.diff(first, second).memory)
    assert second.read(f"{box.info.cwd}/note") == b"second"
    second.tag("v2")
    assert (repo.snapshot("v2"), repo.branches()["shared"], repo.tags()) == (second, second, {"v2": second})
    assert second.export(tmp_path / "out", path="files").files >= 1
    with first.restore("back") as back:
        assert (back.run("x").text, back.snapshot) == ("1", first)
    box.restore(first)
    assert (box.run("x").text, box.files.exists("note")) == ("1", False)
    assert [snapshot.message for snapshot in repo.snapshots()][:2] == ["second", "first"]


def test_a_kernel_may_become_another_ones_moment(box: ijfs.Box, repo: ijfs.Repository) -> None:
    box.run("whose = 'shared'")
    moment = box.save()
    with repo.kernel(name="other", cwd="/") as other:
        other.restore(moment)
        assert other.run("whose").text == "'shared'"


def test_siblings_have_variables_of_their_own(box: ijfs.Box) -> None:
    moment = box.save()
    with ijfs.branches(moment, env=[{"PART": "a"}, {"PART": "b"}]) as kids:
        assert [kid.run("import os; os.environ['PART']").text for kid in kids] == ["'a'", "'b'"]
        assert [kid.exec(["printenv", "PART"]).text for kid in kids] == ["a\n", "b\n"]
        again = kids[1].save().restore()  # variables that were given are part of what is saved
        assert again.exec(["printenv", "PART"]).text == "b\n"
        again.discard()
        kids[0].keep()
    assert [kid.running for kid in kids] == [True, False]
    kids[0].discard()
    with pytest.raises(ijfs.CommandError, match="variables were given for 1 siblings"):
        moment.fork(names=["one", "two"], env=[{}])


def test_copies_of_a_busy_kernel_are_told_when_it_is_done(
    box: ijfs.Box, live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a cell they come up all the same; the copy's files are taken home by it."""
    monkeypatch.setattr(forks, "TELL_S", 1.0)
    wait = "import os, random, time\nopen('/tmp/in', 'w').close()\nwhile not os.path.exists('/tmp/go'): time.sleep(0.1)"
    cell = threading.Thread(target=box.run, args=[wait])
    cell.start()
    try:
        assert eventually(lambda: box.files.exists("/tmp/in"))
        (kid,) = box.fork(env=[{"PART": "late"}], seed=7)
        with kid:
            kid.files.write("/tmp/go", "")
            drawn = random.Random(7).random()
            assert eventually(lambda: kid.run("os.environ.get('PART')").text == "'late'")
            assert kid.run("random.random()").text == repr(drawn)
            kid.run("open('adopted', 'w').write('by the copy')")
            home = str(live_env.work / "adopted")
            assert kid.adopt([home]) == [home]
    finally:
        box.files.write("/tmp/go", "")
        cell.join()
    assert (live_env.work / "adopted").read_text() == "by the copy"


def test_a_program_with_hooks_is_told_its_variables(repo: ijfs.Repository, live_env: LiveEnv) -> None:
    script = (
        "import ijfs, os, time\n"
        "@ijfs.after_restore\n"
        "def told(): print('part', os.environ.get('PART'), flush=True)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    with repo.start(["python3", "-c", script], cwd="/") as program:
        assert eventually(lambda: "ready" in program.logs())
        (kid,) = program.fork(env=[{"PART": "mine"}])
        with kid:
            assert eventually(lambda: "part mine" in kid.logs())


def test_a_search_keeps_the_best_and_leaves_nothing_alive(box: ijfs.Box, repo: ijfs.Repository) -> None:
    box.run("x = 3")
    told: list[float] = []
    best = ijfs.explore(
        box,
        ["x += 1", "x *= 2", lambda kid: kid.stop(grace_s=0)],
        lambda kid: float(kid.run("x").text),
        width=1,
        depth=1,
        on_node=lambda path, score: told.append(score),
    )
    assert (best.path, best.score, sorted(told)) == (("x *= 2",), 6.0, [4, 6])
    assert [live.name for live in repo.boxes()] == ["shared"]


# -- timeouts


def test_a_call_out_of_time_leaves_the_instance_and_what_it_began(box: ijfs.Box) -> None:
    before = box.snapshot
    with pytest.raises(ijfs.CallTimeoutError, match=r"the save is not done after 0\.001 s; it goes on"):
        box.save("later", timeout=0.001)
    assert eventually(lambda: box.snapshot != before)
    assert box.run("'alive'").text == "'alive'"


def test_waiting_for_an_end(repo: ijfs.Repository) -> None:
    with repo.start(["sh", "-c", "read x < /wait || sleep 1000"], cwd="/") as program:
        with pytest.raises(ijfs.CallTimeoutError):
            program.wait(0.01)
        threading.Thread(target=program.stop, kwargs={"grace_s": 0}).start()
        assert program.wait(patient(20)) == 137


def test_a_program_ends_when_its_time_to_live_is_over(repo: ijfs.Repository) -> None:
    with repo.start(["sleep", "1000"], cwd="/", ttl=0.5) as program:
        assert program.wait(patient(30)) == 137
        assert program.info.note == "its time to live, 0.5 s, was over"


def test_a_copy_has_as_much_time_to_live_of_its_own(repo: ijfs.Repository) -> None:
    with repo.start(["sleep", "1000"], cwd="/", ttl=10_000) as program:
        (kid,) = program.fork()
        with kid:
            first, second = program.info.ends_ns, kid.info.ends_ns
    assert first is not None
    assert second is not None
    assert first < second < first + 10**9 * patient(600)


# -- import ijfs


def test_who_names_none_gets_a_name_though_others_start_at_the_same_moment(live_env: LiveEnv) -> None:
    repo = ijfs.Repository.open(live_env.repo)
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda _: repo.start(["sleep", "1000"]), range(4)))
        assert {box.name for box in boxes} == {"sleep", "sleep-2", "sleep-3", "sleep-4"}
        saved = min(boxes, key=lambda box: box.name).save("once")
        assert {box.name for box in pool.map(lambda _: saved.restore(), range(2))} == {"sleep-5", "sleep-6"}
        copies = [box.name for made in pool.map(lambda _: saved.fork(2), range(2)) for box in made]
    assert len(set(copies)) == 4
    assert all(name.startswith("sleep-") for name in copies)


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    from ijfs.sdk.names import MODULES, WHERE

    assert sorted(ijfs.__all__) == ijfs.__all__ or set(ijfs.__all__) == set(dir(ijfs))
    for name in ijfs.__all__:
        assert getattr(ijfs, name) is not None
    inside = {*ijfs.INSIDE, "load_ipython_extension", "unload_ipython_extension"}
    assert set(ijfs.__all__) == set(WHERE) | set(MODULES) | inside
