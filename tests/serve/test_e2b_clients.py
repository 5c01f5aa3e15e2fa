"""`ijfs serve` under E2B's clients as the package index has them: what their users do works, or says why not."""

from __future__ import annotations

import asyncio
import datetime
import http.client
import json
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serve.conftest import RunningServer
from waiting import eventually, patient

e2b = pytest.importorskip("e2b", reason="needs e2b-code-interpreter")

from e2b.sandbox.commands.command_handle import PtySize  # noqa: E402
from e2b_code_interpreter import AsyncSandbox, Sandbox  # noqa: E402

pytestmark = [pytest.mark.root, pytest.mark.criu]

HUNDRED_MB = 100 * 10**6


@pytest.fixture(scope="module")
def box(server: RunningServer) -> Iterator[Any]:
    """A sandbox for commands and files that all tests share."""
    with Sandbox.create("base", timeout=600, envs={"COLOUR": "blue"}, metadata={"of": "tests"}) as made:
        yield made


@pytest.fixture(scope="module")
def kernel(server: RunningServer) -> Iterator[Any]:
    """A code interpreter that all tests share."""
    with Sandbox.create(timeout=600, envs={"COLOUR": "blue"}) as made:
        yield made


def test_commands(box: Any, server: RunningServer) -> None:
    done = box.commands.run("echo $COLOUR $SHAPE; pwd; echo no >&2", envs={"SHAPE": "round"}, cwd="/usr")
    assert (done.stdout, done.stderr, done.exit_code) == ("blue round\n/usr\n", "no\n", 0)
    with pytest.raises(e2b.CommandExitException) as raised:
        box.commands.run("echo so far; exit 3")
    assert (raised.value.exit_code, raised.value.stdout) == (3, "so far\n")
    assert box.commands.run("echo $HOME; pwd").stdout == 2 * f"{server.home}\n", "whose start-up files are read"
    assert box.commands.run("id -un", user="nobody").stdout == "nobody\n"
    with pytest.raises(e2b.InvalidArgumentException, match="no user of this name"):
        box.commands.run("id", user="alice")
    with pytest.raises(e2b.TimeoutException):
        box.commands.run("sleep 1000", timeout=1)
    assert eventually(lambda: not box.commands.list(), 10), "a command that is out of time is killed"


def test_a_command_in_the_background(box: Any) -> None:
    """It is found by its pid, takes input, is left and followed again, and killed."""
    left = box.commands.run("while read line; do echo got $line; done; echo end", background=True, stdin=True)
    assert [(p.pid, p.args[-1][:10]) for p in box.commands.list()] == [(left.pid, "while read")]
    left.disconnect()
    handle = box.commands.connect(left.pid)
    box.commands.send_stdin(left.pid, "one\n")
    box.commands.stream_input(left.pid, ["two\n", b"three\n"])
    box.commands.close_stdin(left.pid)
    assert handle.wait().stdout == "got one\ngot two\ngot three\nend\n"
    assert box.commands.kill(left.pid) is False
    endless = box.commands.run("sleep 1000", background=True)
    assert endless.kill() is True
    with pytest.raises(e2b.CommandExitException) as raised:
        endless.wait()
    assert raised.value.exit_code == 128 + signal.SIGKILL


def test_a_terminal(box: Any) -> None:
    """It is one of the sandbox's, with a size that changes."""
    shell = box.pty.create(PtySize(rows=24, cols=100), envs={"PS1": "$ "})
    box.pty.resize(shell.pid, PtySize(rows=30, cols=90))
    box.pty.send_stdin(shell.pid, b"tty; stty size; exit\n")
    written = b"".join(data for _, _, data in shell if data is not None)
    assert b"/dev/pts/" in written
    assert b"30 90" in written


def test_files(box: Any) -> None:
    data = bytes(range(256)) * 5000
    box.files.write("/tmp/a/b/data", data, metadata={"kind": "bytes"})
    assert bytes(box.files.read("/tmp/a/b/data", format="bytes")) == data
    assert b"".join(box.files.read("/tmp/a/b/data", format="stream")) == data
    box.files.write("/tmp/a/packed", data, gzip=True)
    box.files.write_files([{"path": "/tmp/a/one", "data": "1"}, {"path": "/tmp/a/two", "data": "2"}])
    names = {(entry.name, entry.type.value, entry.size) for entry in box.files.list("/tmp/a", depth=2)}
    assert names == {
        ("b", "dir", 4096),
        ("data", "file", len(data)),
        ("packed", "file", len(data)),
        ("one", "file", 1),
    } | {("two", "file", 1)}
    info = box.files.get_info("/tmp/a/b/data")
    assert (info.permissions, info.owner, info.metadata) == ("-rw-r--r--", "root", {"kind": "bytes"})
    assert box.files.rename("/tmp/a/one", "/tmp/a/three").path == "/tmp/a/three"
    assert (box.files.exists("/tmp/a/one"), box.files.exists("/tmp/a/three")) == (False, True)
    assert (box.files.make_dir("/tmp/a/d"), box.files.make_dir("/tmp/a/d")) == (True, False)
    box.files.remove("/tmp/a")
    with pytest.raises(e2b.FileNotFoundException, match="no such file"):
        box.files.read("/tmp/a/two")


def test_a_file_by_a_signed_address(box: Any) -> None:
    box.files.write("/tmp/signed", "for the bearer")
    url = box.download_url("/tmp/signed", use_signature_expiration=600)
    assert urllib.request.urlopen(url).read() == b"for the bearer"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url.replace("signed", "other"))


def test_a_directory_is_watched(box: Any) -> None:
    box.files.make_dir("/tmp/w/inner")
    watch = box.files.watch_dir("/tmp/w", recursive=True)
    box.commands.run("echo 1 > /tmp/w/inner/new; mkdir /tmp/w/later; mv /tmp/w/inner/new /tmp/w/old; rm /tmp/w/old")
    seen = {(event.name, event.type.value) for event in watch.get_new_events()}
    watch.stop()
    assert {("inner/new", "create"), ("inner/new", "write"), ("inner/new", "rename"), ("later", "create")} <= seen
    assert {("old", "create"), ("old", "remove")} <= seen


def test_cells(kernel: Any) -> None:
    told: list[str] = []
    done = kernel.run_code("x = 41\nprint('printed')\nx + 1", on_stdout=lambda message: told.append(message.line))
    assert (done.text, done.logs.stdout, told, done.error) == ("42", ["printed\n"], ["printed\n"], None)
    assert kernel.run_code("import os; os.environ['COLOUR']").text == "blue"
    assert kernel.run_code("os.environ['ONCE']", envs={"ONCE": "here"}).text == "here"
    assert kernel.run_code("os.environ.get('ONCE', 'gone')").text == "gone"
    failed = kernel.run_code("1 / 0").error
    assert (failed.name, failed.value) == ("ZeroDivisionError", "division by zero")
    shown = kernel.run_code("from IPython.display import *; display(HTML('<b>'))\nJSON({'a': 1})").results
    assert [(list(result.formats()), result.is_main_result) for result in shown] == [
        (["text", "html"], False),
        (["text", "json"], True),
    ]
    with pytest.raises(e2b.SandboxException, match=r"501.*cells are Python"):
        kernel.run_code("1", language="javascript")


def test_contexts(kernel: Any) -> None:
    """Each has its own variables and directory; a fresh one begins without."""
    context = kernel.create_code_context(cwd="/usr")
    assert kernel.run_code("y = 5; import os; os.getcwd()", context=context).text == "/usr"
    assert kernel.run_code("y").error.name == "NameError"
    assert kernel.run_code("y", context=context).text == "5"
    assert [known.id for known in kernel.list_code_contexts()] == ["default", context.id]
    kernel.restart_code_context(context)
    assert kernel.run_code("y", context=context).error.name == "NameError"
    kernel.remove_code_context(context)
    with pytest.raises(e2b.NotFoundException):
        kernel.run_code("y", context=context)


def test_a_cell_that_nobody_waits_for_is_interrupted(kernel: Any) -> None:
    """Out of time, the client leaves; so does one that is gone. The kernel keeps what it has."""
    kernel.run_code("kept = 'kept'")
    with pytest.raises(e2b.TimeoutException):
        kernel.run_code("import time\ntime.sleep(1000)", timeout=1)
    assert kernel.run_code("kept").text == "kept"


def test_life(server: RunningServer) -> None:
    """Paused and resumed with its memory, forked, saved under a name, ended."""
    box = Sandbox.create(timeout=600, metadata={"life": "long"})
    try:
        box.run_code("import threading; n = 1; event = threading.Event()")
        assert box.pause() is True
        assert box.is_running() is False
        assert box.pause() is False
        (listed,) = Sandbox.list(query=e2b.SandboxQuery(metadata={"life": "long"})).next_items()
        assert (listed.sandbox_id, listed.state.value) == (box.sandbox_id, "paused")
        with pytest.raises(e2b.SandboxException, match="was not found: it is paused"):
            box.commands.run("true")
        again = Sandbox.connect(box.sandbox_id, timeout=600)
        assert again.run_code("n, event.is_set()").text == "(1, False)"
        first, second = again.fork(count=2, timeout=600)
        assert first.run_code("n += 1; n").text == "2"
        assert second.run_code("n").text == "1"
        saved = first.create_snapshot("second-moment")
        assert [one.snapshot_id for one in Sandbox.list_snapshots().next_items()] == [saved.snapshot_id]
        with Sandbox.create("second-moment") as third:
            assert third.run_code("n").text == "2"
        assert Sandbox.delete_snapshot(saved.snapshot_id) is True
        (measured,) = first.get_metrics()
        assert measured.mem_used > 10_000_000
        assert (first.kill(), second.kill(), first.kill()) == (True, True, False)
    finally:
        box.kill()
    with pytest.raises(e2b.SandboxException, match="was not found"):
        box.commands.run("true")


def test_time_that_is_over(server: RunningServer) -> None:
    """A sandbox ends, or is paused where that was asked for, and comes back when it is called."""
    ending = Sandbox.create("base", timeout=600)
    pausing = Sandbox.create("base", timeout=600, lifecycle={"on_timeout": "pause", "auto_resume": True})
    pausing.files.write("/tmp/kept", "kept")
    for box in (ending, pausing):
        end = box.get_info().end_at - datetime.datetime.now(datetime.UTC)
        assert 500 < end.total_seconds() <= 600
        box.set_timeout(0)
    assert eventually(lambda: ending.sandbox_id not in ids(), 30)
    assert eventually(lambda: pausing.get_info().state.value == "paused", 30)
    pausing.set_timeout(600)
    assert pausing.files.read("/tmp/kept") == "kept"
    pausing.kill()


def ids() -> list[str]:
    """Of all sandboxes."""
    return [listed.sandbox_id for listed in Sandbox.list().next_items()]


def test_the_async_client(server: RunningServer) -> None:
    async def work() -> None:
        async with await AsyncSandbox.create(timeout=600) as box:
            assert (await box.run_code("print(1)\n2")).text == "2"
            assert (await box.commands.run("echo out; echo err >&2")).stderr == "err\n"
            seen = asyncio.Event()
            watch = await box.files.watch_dir("/tmp", on_event=lambda event: seen.set())
            await box.files.write("/tmp/new", "new")
            await asyncio.wait_for(seen.wait(), patient(20))
            await watch.stop()

    asyncio.run(work())


def test_a_hundred_megabytes_and_bytes_that_are_no_text(box: Any) -> None:
    sizes: list[int] = []
    box.commands.run(
        f"head -c {HUNDRED_MB} /dev/zero | tr '\\0' x",
        on_stdout=lambda text: sizes.append(len(text)),
        retain_output=False,
        timeout=patient(120),
    )
    assert sum(sizes) == HUNDRED_MB
    assert box.commands.run(r"printf 'a\377\000b'").stdout == "a\ufffd\0b"


def test_a_client_that_vanishes(box: Any, kernel: Any, server: RunningServer) -> None:
    """In the middle of a cell: it is interrupted. Of an upload: there is no file. Of a command: it runs on."""
    headers = {"E2b-Sandbox-Id": kernel.sandbox_id, "E2b-Sandbox-Port": "49999", "X-Access-Token": token(kernel)}
    gone = http.client.HTTPConnection("127.0.0.1", server.port)
    gone.request("POST", "/execute", json.dumps({"code": "print('begun', flush=True)\nwhile True: pass"}), headers)
    assert b"begun" in gone.getresponse().readline()
    gone.close()
    assert kernel.run_code("'free'").text == "free"

    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token(box)}
    box.files.make_dir("/tmp/half")
    gone = http.client.HTTPConnection("127.0.0.1", server.port)
    gone.putrequest("POST", "/files?path=/tmp/half/file")
    for name, value in {**headers, "Content-Length": "1000000", "Content-Type": "application/octet-stream"}.items():
        gone.putheader(name, value)
    gone.endheaders(b"x" * 1000)
    assert eventually(lambda: box.files.list("/tmp/half"), 20)
    gone.close()
    assert eventually(lambda: not box.files.list("/tmp/half"), 20)

    left = box.commands.run("sleep 1000", background=True)
    left.disconnect()
    assert [running.pid for running in box.commands.list()] == [left.pid]
    assert box.commands.kill(left.pid) is True


def token(box: Any) -> str:
    """What opens its data plane."""
    return str(box._envd_access_token)


def test_who_may_not(box: Any, server: RunningServer) -> None:
    with pytest.raises(e2b.AuthenticationException):
        Sandbox.create("base", api_key="ijfs_wrong")
    other = server.keys.add("other", sandboxes=0)
    assert Sandbox.list(api_key=other).next_items() == []
    assert Sandbox.kill(box.sandbox_id, api_key=other) is False
    with pytest.raises(e2b.RateLimitException, match="may have 0"):
        Sandbox.create("base", api_key=other)
    server.keys.remove("other")
    with pytest.raises(e2b.AuthenticationException):
        Sandbox.list(api_key=other).next_items()
    request = urllib.request.Request(
        f"{server.url}/files?path=/etc/shadow", headers={"E2b-Sandbox-Id": box.sandbox_id, "X-Access-Token": "guess"}
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Sandbox.create("base", volume_mounts={"/data": "vol"}), "does not have volumes"),
        (lambda: Sandbox.create("base", network={"deny_out": ["1.1.1.1"]}), "does not have network rules"),
        (lambda: Sandbox.create("base", allow_internet_access=True), "does not have a way out"),
        (lambda: Sandbox.create("nothing-such"), "there is no template `nothing-such`"),
    ],
)
def test_what_is_not_there_is_a_sentence(server: RunningServer, call: Callable[[], Any], sentence: str) -> None:
    before = ids()
    with pytest.raises(e2b.SandboxException, match=sentence):
        call()
    assert ids() == before


def test_a_call_that_is_repeated_is_done_once(server: RunningServer) -> None:
    made: list[str] = []

    def create() -> None:
        made.append(Sandbox.create("base", idempotency_key="0f-the-same").sandbox_id)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert len(set(made)) == 1
    with pytest.raises(e2b.SandboxException, match="another request before"):
        Sandbox.create("base", timeout=17, idempotency_key="0f-the-same")
    Sandbox.kill(made[0])


def test_a_server_that_is_killed_is_followed_by_one_that_finds_all(box: Any, server: RunningServer) -> None:
    box.files.write("/tmp/before", "before")
    server.process.kill()
    server.process.wait()
    assert server.process.stderr is not None
    server.process.stderr.close()
    server.start()
    assert box.files.read("/tmp/before") == "before"
    assert Sandbox.connect(box.sandbox_id).commands.run("cat /tmp/before").stdout == "before"


def test_what_operators_see(box: Any, server: RunningServer) -> None:
    assert urllib.request.urlopen(f"{server.url}/healthz").read() == b"ok\n"
    request = urllib.request.Request(f"{server.url}/metrics", headers={"Authorization": f"Bearer {server.key}"})
    metrics = urllib.request.urlopen(request).read().decode()
    assert 'ijfs_sandboxes{state="running"}' in metrics
    assert 'ijfs_requests_total{call="process.Process/Start",status="200"}' in metrics
    box.files.write("/tmp/noted", "x")
    *_, last = (server.repo / "serve" / "audit.log").read_text().splitlines()
    noted = json.loads(last)
    assert (noted["key"], noted["call"], noted["sandbox"]) == ("tests", "POST /files", box.sandbox_id)
    assert (server.repo / "serve" / "audit.log").stat().st_mode & 0o777 == 0o600
