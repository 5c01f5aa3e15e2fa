"""Options that programs are started with, and what is said at their start. No program runs here but the last test's."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import urllib.request
from pathlib import Path

import click
import pytest
from calls import Ijfs
from json_page import check
from waiting import eventually

from ijfs.cli import starting
from ijfs.cli.app import App
from ijfs.cli.starting import GivenPort, Port
from ijfs.live.client.api import HostPort


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("8000", GivenPort(8000, 8000, "127.0.0.1", or_any=True)),
        ("8000/tcp", GivenPort(8000, 8000, "127.0.0.1", or_any=True)),
        ("80", GivenPort(80, 0, "127.0.0.1")),
        ("9000:8000", GivenPort(8000, 9000, "127.0.0.1")),
        ("0.0.0.0:9000:8000", GivenPort(8000, 9000, "0.0.0.0")),
        ("localhost:9000:8000", GivenPort(8000, 9000, "127.0.0.1")),
    ],
)
def test_ports_are_read_as_docker_reads_them_and_one_alone_is_the_same_here(typed: str, meant: GivenPort) -> None:
    assert Port().convert(typed, None, None) == meant


@pytest.mark.parametrize(
    "typed", ["", "0", "65536", "http", "8000:", ":8000", "1:2:3:4", "host:9000:8000", "8000/udp", "-1", "\u0663\u0663"]
)
def test_what_is_no_port_is_wrong_usage(typed: str) -> None:
    with pytest.raises(click.BadParameter, match="is no port"):
        Port().convert(typed, None, None)


@pytest.mark.parametrize("verb", ["run --ttl", "kernel start --ttl", "exec --timeout", "stop --timeout"])
@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e400", "1e10", "-1"])
def test_what_no_clock_counts_is_wrong_usage(ijfs: Ijfs, verb: str, word: str) -> None:
    done = ijfs(*verb.split(), word, "lab", "true")
    assert done.code == 2
    assert "invalid value" in done.err


def test_only_what_was_chosen_is_asked_for_again_after_a_restore() -> None:
    here = "127.0.0.1"
    given = [
        GivenPort(79, 0, here),
        GivenPort(80, 9000, here),
        GivenPort(81, 9001, "0.0.0.0"),
        GivenPort(82, 82, here, True),
    ]
    assert starting.published(given) == (
        HostPort(80, 9000),
        HostPort(81, 9001, "0.0.0.0"),
        HostPort(82, 82, or_any=True),
    )
    assert len(starting.all_chosen(given)) == 4


def test_variables_come_from_the_command_line_before_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=of the file\nB=b=c\n  C=\n")
    monkeypatch.setenv("HERE", "here")
    found = starting.variables(["A=typed", "HERE", "A=last"], [file])
    assert found == {"A": "last", "B": "b=c", "C": "", "HERE": "here"}


@pytest.mark.parametrize("word", ["=x", "A B=x", "NOT_SET_ANYWHERE"])
def test_what_is_no_variable_is_wrong_usage(word: str, tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="--env"):
        starting.variables([word], [])
    (tmp_path / "f").write_text(f"OK=1\n{word}\n")
    with pytest.raises(click.UsageError, match="line 2"):
        starting.variables([], [tmp_path / "f"])


def test_a_program_that_could_not_be_saved_is_warned_of_at_its_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IJFS_CRIU", "/no/such/criu")
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    starting.warn_of_what_cannot_be_saved(App(), gpu=True)
    said = capfd.readouterr().err
    assert "this cannot be saved: IJFS_CRIU names /no/such/criu" in said
    assert "shows no NVIDIA GPU" in said


def test_nothing_is_said_where_nothing_stands_in_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    starting.warn_of_what_cannot_be_saved(App(), gpu=False)
    said = capfd.readouterr().err
    assert said == "" or "no CRIU was found" in said


@pytest.mark.parametrize(("shell", "prompt"), [("bash", r"(lab)\u@\h:\w\$ "), ("/bin/sh", "(lab) $ ")])
def test_a_shells_prompt_says_where_it_is_and_a_scripts_has_none(
    monkeypatch: pytest.MonkeyPatch, shell: str, prompt: str
) -> None:
    from ijfs.live.client import api

    monkeypatch.setattr(os, "isatty", lambda fd: True)
    assert api._prompt("lab", shell) == {"debian_chroot": "lab", "PS1": prompt}
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    assert api._prompt("lab", shell) == {}


SERVER = """
import functools, http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write((os.environ["KEY"] + " " + os.environ["IJFS_INSTANCE"]).encode())
    def log_message(self, *args): pass
import ijfs
ijfs.after_restore(lambda: None)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


def free_port() -> int:
    """A port that nobody has just now, and that the system gives to nobody who does not ask for it."""
    for port in random.sample(range(20_000, 32_000), 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def answer(port: int) -> str:
    """What the server says; "" while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as said:
            return str(said.read().decode())
    except OSError:
        return ""


@pytest.mark.root
@pytest.mark.criu
def test_a_server_is_reached_where_it_was_asked_for_and_a_restored_one_has_the_new_key(
    ijfs: Ijfs, run_ijfs: Ijfs, live: Path
) -> None:
    port = free_port()
    started = ijfs("run", "--name", "s", "-p", f"{port}:8000", "-e", "KEY=old", "--", "python3", "-c", SERVER)
    assert started.code == 0, started.err
    assert f"port 8000 is 127.0.0.1:{port} here" in started.out
    assert "network none" in started.out
    assert eventually(lambda: answer(port) == "old s")
    assert f"{port}→8000" in ijfs("ps").out
    taken = ijfs("run", "--name", "t", "--port", f"{port}:80", "sleep", "600")
    assert (taken.code, "is taken by another program" in taken.err) == (1, True)
    alone = ijfs("run", "--name", "t", "--port", str(port), "sleep", "600")
    assert (alone.code, f"port {port} here is another program's" in alone.err) == (0, True)
    assert "`-p PORT` lets requests in" in ijfs("run", "--name", "u", "sleep", "600").out
    assert run_ijfs("exec", "s", "sh", "-c", "echo $IJFS_INSTANCE $KEY").out == "s old\n"
    assert ijfs("save", "s", "-q").code == 0
    twice = ijfs("restore", "s", "--name", "s")
    assert (twice.code, "`--replace` puts the snapshot in its place" in twice.err) == (2, True)

    beside = ijfs("restore", "s", "--name", "copy", "--env", "KEY=new", "--json").json
    check(beside, "restore")
    [other] = [p["host"] for p in beside["instance"]["relay"]]
    assert other != port
    assert eventually(lambda: answer(other) == "new copy")
    assert run_ijfs("exec", "copy", "sh", "-c", "echo $IJFS_INSTANCE $KEY").out == "copy new\n"
    assert ijfs("stop", "--rm", "copy", "s", "t").code == 0
    assert f"port {port} is 127.0.0.1:{port} here" in ijfs("run", "--name", "t", "-p", str(port), "sleep", "600").out
    assert ijfs("stop", "--rm", "t").code == 0
    again = ijfs("restore", "s", "--json").json["instance"]["relay"]
    assert [(p["inside"], p["host"], p["address"]) for p in again] == [(8000, port, "127.0.0.1")]
    assert eventually(lambda: answer(port) == "old s")


@pytest.mark.root
@pytest.mark.criu
def test_who_keeps_the_old_environment_is_told_of(ijfs: Ijfs, run_ijfs: Ijfs, live: Path) -> None:
    assert ijfs("run", "--name", "plain", "--", "sleep", "600").code == 0
    assert ijfs("save", "plain", "-q").code == 0
    restored = ijfs("restore", "plain", "--name", "copy", "-e", "KEY=new")
    assert restored.code == 0
    assert "keeps the environment that it was saved with" in restored.err
    assert run_ijfs("exec", "copy", "sh", "-c", "echo $KEY").out == "new\n"


@pytest.mark.root
@pytest.mark.criu
def test_a_restored_kernel_takes_new_variables(ijfs: Ijfs, live: Path) -> None:
    assert ijfs("kernel", "start", "--name", "k", "-e", "KEY=old").code == 0
    assert ijfs("save", "k", "-q").code == 0
    assert ijfs("restore", "k", "--name", "copy", "-e", "KEY=new").code == 0
    asked = "import os; print(os.environ['KEY'])"
    assert ijfs("exec", "copy", "-c", asked).out == "new\n"
    assert ijfs("exec", "k", "-c", asked).out == "old\n"
