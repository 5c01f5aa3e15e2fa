"""A kernel that runs a cell is taken back: the cell is interrupted or left behind, and no client waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client import BlockingKernelClient
from live_env import Kernel, LiveEnv
from waiting import eventually, patient

from ijfs.live.client import api as client
from ijfs.live.errors import KernelBusyError
from ijfs.live.model.records import KernelState
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.criu]

LONG = "import time; time.sleep(600)"
WAIT_S = patient(60)


def state(env: LiveEnv, name: str) -> KernelState:
    found = client.describe(env.repo, name).kernel
    assert found is not None
    return found


def begun(env: LiveEnv, kernel: Kernel, code: str, **options: Any) -> str:
    """Begin a cell; the id of the request, once it runs."""
    request = str(kernel.client.execute(code, **options))
    assert eventually(lambda: state(env, kernel.info.name).busy)
    while kernel.client.get_iopub_msg(timeout=WAIT_S)["msg_type"] != "execute_input":
        pass
    return request


def reply(kernel: Kernel, request: str) -> dict[str, Any]:
    while (message := kernel.client.get_shell_msg(timeout=WAIT_S))["parent_header"].get("msg_id") != request:
        pass
    return dict(message["content"])


def idle(kernel: Kernel, request: str) -> bool:
    """Wait until `idle` is published of a request."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=WAIT_S)
        if message["parent_header"].get("msg_id") == request and message["content"].get("execution_state") == "idle":
            return True


def test_what_a_cell_left_behind_had_asked_for_is_answered_and_the_kernel_goes_on(live_env: LiveEnv) -> None:
    kernel = live_env.kernel("k")
    kernel.run("x = 1")
    assert client.describe(live_env.repo, "k").unsaved
    saved = live_env.save("k").snapshot
    assert state(live_env, "k").count == 1
    assert not client.describe(live_env.repo, "k").unsaved
    request, queued = begun(live_env, kernel, f"x = 2; {LONG}"), str(kernel.client.execute("x = 3"))
    with pytest.raises(KernelBusyError):
        client.restore(live_env.repo, saved, "k", replace=True, busy="refuse")
    client.restore(live_env.repo, saved, "k", replace=True, busy="force")
    assert reply(kernel, request) == reply(kernel, queued) == {"status": "aborted"}
    assert idle(kernel, request)
    assert kernel.run("print(x)") == "1"
    assert not state(live_env, "k").busy


def test_a_cell_is_interrupted_before_its_kernel_goes_back(live_env: LiveEnv) -> None:
    kernel = live_env.kernel("k")
    saved = live_env.save("k").snapshot
    request = begun(live_env, kernel, LONG)
    notices: list[str] = []
    client.restore(live_env.repo, saved, "k", replace=True, on_event=lambda e: notices.append(getattr(e, "text", "")))
    assert "`k` was running a cell, which was interrupted" in notices
    assert reply(kernel, request)["ename"] == "KeyboardInterrupt"
    assert kernel.run("print('here')") == "here"


def test_a_snapshot_knows_that_a_cell_was_running_and_what_it_waited_for(live_env: LiveEnv) -> None:
    kernel = live_env.kernel("k")
    request = begun(live_env, kernel, "name = input('who? ')", allow_stdin=True)
    assert eventually(lambda: state(live_env, "k").prompt == "who? ")
    saved = live_env.save("k").snapshot
    with Repository.open(live_env.repo) as repository:
        assert repository.snapshot(bytes.fromhex(saved)).meta["kernel"] == {
            "count": None,
            "busy": True,
            "prompt": "who? ",
        }
    kernel.client.input("me")
    assert reply(kernel, request)["status"] == "ok"
    assert eventually(lambda: state(live_env, "k") == KernelState(1))
    copy = BlockingKernelClient()
    copy.load_connection_info(client.restore(live_env.repo, saved, "copy").connection)
    assert state(live_env, "copy") == KernelState(None, True, "who? ")
    copy.start_channels()
    copy.input("the copy")
    assert eventually(lambda: state(live_env, "copy").prompt is None)
    copy.kernel_info()  # answered after the cell that was waiting: then that has ended
    assert eventually(lambda: not state(live_env, "copy").busy)
    copy.stop_channels()


def test_a_kernel_that_nobody_started_for_a_front_end_is_not_ended_by_one(live_env: LiveEnv) -> None:
    kernel = live_env.kernel("k")
    kernel.client.shutdown()
    assert kernel.run("print('here')") == "here"
    assert live_env.exec("k", "true") == 0
