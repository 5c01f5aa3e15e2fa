"""The program's side of the guest port, against a server on loopback that answers as told.

The server stands for the keeper only to fix the order of steps and what is done about silence; that the real keeper
and the real program understand each other is tested in test_save_inside.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from guest_peer import PENDING, RESUMED, SAVED, Peer, settles
from waiting import eventually, patient

import ijfs
from ijfs import guest
from ijfs.guest import hooks, saving


def test_save_repeats_one_request_until_it_is_settled(keeper: Peer) -> None:
    keeper.answer = settles(PENDING, PENDING, SAVED)
    result = ijfs.save("before the fit")
    assert (result.id, result.resumed, result.instance, result.name) == ("ab" * 32, False, "demo", "ab" * 6)
    assert len(keeper.requests) == 3
    assert {json.dumps(request) for request in keeper.requests} == {json.dumps(keeper.requests[0])}
    assert keeper.requests[0]["message"] == "before the fit"
    assert len(keeper.requests[0]["nonce"]) == 32


def test_two_saves_have_different_nonces(keeper: Peer) -> None:
    keeper.answer = settles(SAVED)
    ijfs.save()
    ijfs.save()
    assert keeper.requests[0]["nonce"] != keeper.requests[1]["nonce"]


def test_a_restored_child_is_told_that_it_is_one(keeper: Peer) -> None:
    keeper.answer = settles(PENDING, RESUMED)
    result = ijfs.save()
    assert result.resumed
    assert str(result) == f"resumed from {'ab' * 6} as demo-1"


@pytest.mark.parametrize("cut", [None, b'{"ok": {"sta', b"not json\n", b'["a list"]\n', b'{"neither": 1}\n'])
def test_a_connection_that_is_cut_is_made_again(keeper: Peer, cut: bytes | None) -> None:
    keeper.answer = settles(PENDING, cut, cut, SAVED)
    assert not ijfs.save().resumed
    assert len(keeper.requests) == 4


def test_a_keeper_that_says_no_raises_with_its_sentence_and_hint(keeper: Peer) -> None:
    error = {"type": "CriuError", "message": "CRIU refused: io_uring", "hint": "close it", "exit_code": 1}
    keeper.answer = settles(PENDING, {"error": error})
    with pytest.raises(ijfs.GuestError, match="CRIU refused: io_uring") as caught:
        ijfs.save()
    assert (caught.value.hint, caught.value.kind) == ("close it", "CriuError")


def test_a_keeper_that_is_gone_is_given_up_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("IJFS_GUEST", f"127.0.0.1:{port}")
    monkeypatch.setattr(saving, "PATIENCE", 5)
    with pytest.raises(ijfs.GuestError, match="whether the snapshot was made is unknown"):
        ijfs.save()


def test_a_peer_that_never_answers_is_left_after_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("IJFS_GUEST", f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(guest.port, "TIMEOUT_S", 0.1)
        monkeypatch.setattr(saving, "PATIENCE", 2)
        begin = time.monotonic()
        with pytest.raises(ijfs.GuestError):
            ijfs.save()
        assert time.monotonic() - begin < patient(5)


def test_outside_a_sandbox_save_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IJFS_GUEST", raising=False)
    assert not ijfs.in_sandbox()
    with pytest.raises(ijfs.GuestError, match="ijfs run"):
        ijfs.save()


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IJFS_GUEST", "somewhere")
    with pytest.raises(ijfs.GuestError, match="not host:port"):
        ijfs.save()


# -- hooks: in a process of their own, because a process has one listener for as long as it lives

HOOKED = """
import os, ijfs
ijfs.before_save(lambda: os.write(1, b"before "))
ijfs.after_restore(lambda: os.write(1, b"after "))
@ijfs.before_save
def broken():
    raise ValueError("no")
input()
"""


@pytest.fixture
def hooked(keeper: Peer) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", HOOKED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    while len(keeper.requests) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    with process:
        yield process
        if process.poll() is None:
            process.kill()


def test_a_hook_given_before_the_keeper_listens_is_not_lost(keeper: Peer) -> None:
    keeper.answer = settles(None, None, {"ok": {}})
    once = "import ijfs; ijfs.before_save(lambda: None); input()"
    with subprocess.Popen([sys.executable, "-c", once], stdin=subprocess.PIPE) as process:
        assert eventually(lambda: len(keeper.requests) == 3, 20)
        assert {request["port"] for request in keeper.requests} == {keeper.requests[0]["port"]}
        time.sleep(3 * hooks.ANNOUNCE_AGAIN_S)
        process.communicate(b"\n")
    assert len(keeper.requests) == 3


def tell(port: int, event: str) -> Any:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(json.dumps({"event": event}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            return json.loads(lines.readline())


def test_hooks_run_at_the_keepers_events_and_a_broken_one_is_reported(
    keeper: Peer, hooked: subprocess.Popen[bytes]
) -> None:
    ports = {request["port"] for request in keeper.requests}
    assert len(ports) == 1
    (port,) = ports
    answer = tell(port, "before_save")
    assert "broken: ValueError: no" in answer["error"]["message"]
    assert "refuse" not in answer
    assert tell(port, "after_save") == {"ok": {}}
    assert tell(port, "after_restore") == {"ok": {}}
    assert tell(port, "of a later version") == {"ok": {}}
    stdout, _ = hooked.communicate(b"\n")
    assert stdout == b"before after "


def test_a_restored_programs_hooks_find_the_variables_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setenv("GIVEN", "old")
    monkeypatch.setattr(hooks, "_after_restore", [lambda: seen.append(os.environ["GIVEN"])])
    assert hooks.handle("after_restore", env={"GIVEN": "new"}) == {"ok": {"env": True}}
    assert hooks.handle("after_restore") == {"ok": {}}
    assert seen == ["new", "new"]


def test_a_save_waits_for_a_barrier_and_is_refused_when_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IJFS_GUEST", raising=False)
    monkeypatch.setattr(hooks, "BARRIER_WAIT_S", 0.2)
    with ijfs.barrier():
        assert hooks.handle("before_save")["refuse"] is True
    monkeypatch.setattr(hooks, "BARRIER_WAIT_S", patient(20))
    with ijfs.barrier(), ijfs.barrier():
        waiting = threading.Thread(target=hooks.handle, args=("before_save",))
        waiting.start()
    waiting.join()
    entered = threading.Event()

    def enter() -> None:
        with ijfs.barrier():
            entered.set()

    blocked = threading.Thread(target=enter)
    blocked.start()
    assert not entered.wait(0.1)  # a save is going on
    hooks.handle("after_save")
    assert entered.wait(patient(20))
    blocked.join()


def test_save_inside_a_barrier_is_refused(keeper: Peer) -> None:
    with ijfs.barrier(), pytest.raises(ijfs.GuestError, match=r"inside ijfs\.barrier"):
        ijfs.save()
    hooks._forget_in_child()


# -- import ijfs in a Python of another environment


def test_import_works_without_ijfs_or_its_dependencies_installed() -> None:
    program = "import ijfs, sys; print(ijfs.__file__, ijfs.in_sandbox(), 'msgspec' in sys.modules)"
    environment = {"PYTHONPATH": guest.PYTHON_PATH, "PATH": os.environ["PATH"]}
    # -S: no site-packages at all, the poorest environment there is.
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [ijfs.__file__, "False", "False"]


def test_the_path_directory_makes_nothing_else_importable() -> None:
    environment = {"PYTHONPATH": guest.PYTHON_PATH}
    done = subprocess.run([sys.executable, "-S", "-c", "import ijfs_engine"], env=environment, capture_output=True)
    assert b"No module named 'ijfs_engine'" in done.stderr


def test_importing_ijfs_is_cheap() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, ijfs; print(*(m for m in sys.modules if m.startswith('ijfs')))"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = [name for name in done.stdout.split() if not name.startswith("ijfs_engine")]
    assert loaded == ["ijfs"]
