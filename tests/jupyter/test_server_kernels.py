"""The panel's API and the server's own: new kernels from what was saved, and what becomes of kernels that are left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from jupyter_env import JupyterEnv
from jupyter_http import JupyterServer, notebook
from waiting import eventually

from ijfs.jupyter.livespecs import PREFIX
from ijfs.live.client import api as client

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@pytest.fixture(scope="module")
def server(jupyter_env: JupyterEnv, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    running = JupyterServer(
        jupyter_env,
        tmp_path_factory.mktemp("notebooks") / "root",
        "--ServerApp.kernel_spec_manager_class=ijfs.jupyter.livespecs.LiveKernelSpecManager",
    )
    yield running
    running.close()


@pytest.fixture
def kernel(server: JupyterServer) -> Iterator[str]:
    started = server.open("study.ipynb")
    yield started
    server.call("DELETE", f"api/kernels/{started}")


def session_of(server: JupyterServer, kernel: str) -> dict[str, Any]:
    return next(s for s in server.get("api/sessions") if s["kernel"]["id"] == kernel)


def test_a_fork_is_a_kernel_and_a_notebook_of_its_own(server: JupyterServer, kernel: str) -> None:
    server.run(kernel, "x = 'both'")
    fork = server.do("fork", kernel=kernel, path="study.ipynb", document=notebook("x"))
    assert fork["path"] == "study-fork.ipynb"
    assert json.loads((server.root / fork["path"]).read_text())["cells"][0]["source"] in ("x", ["x"])
    other = fork["kernel"]["id"]
    assert session_of(server, other)["path"] == fork["path"]
    server.run(other, "x += ' and the fork'")
    assert (server.run(other, "print(x)"), server.run(kernel, "print(x)")) == ("both and the fork", "both")
    saved = server.env.save(fork["instance"])
    tree = server.ask("tree")
    assert next(s for s in tree["snapshots"] if s["id"] == saved)["notebook"] == fork["path"]
    # Restarting it is a new beginning, not another copy.
    server.call("POST", f"api/kernels/{other}/restart")
    assert server.run(other, "print('x' in globals())") == "False"
    server.call("DELETE", f"api/kernels/{other}")
    assert eventually(lambda: fork["instance"] not in server.env.instances())


def test_a_kernel_that_is_shut_down_is_saved_first_and_its_notebook_is_offered_to_go_on(server: JupyterServer) -> None:
    kernel = server.open("again.ipynb")
    assert server.ask("offer", path="again.ipynb")["snapshot"] is None
    server.type(kernel, "x = 'kept'")
    server.call("DELETE", f"api/sessions/{session_of(server, kernel)['id']}")
    offer = server.ask("offer", path="again.ipynb")
    assert (offer["snapshot"]["message"], offer["snapshot"]["auto"]) == ("before it was shut down", True)
    resumed = server.do("resume", path="again.ipynb", snapshot=offer["snapshot"]["id"])
    assert server.run(resumed["kernel"]["id"], "print(x)") == "kept"
    assert server.ask("offer", path="again.ipynb")["snapshot"] is None
    server.call("DELETE", f"api/kernels/{resumed['kernel']['id']}")


def test_a_live_program_is_joined_by_two_notebooks_and_left_by_both_as_it_was(
    server: JupyterServer, kernel: str
) -> None:
    (live,) = client.fork(server.env.repo, server.instance(kernel), ["lab"])
    one, two = (server.open(path, PREFIX + live.name) for path in ("one.ipynb", "two.ipynb"))
    assert one == two
    server.run(one, "x = 'unsaved work'")
    server.call("DELETE", f"api/sessions/{session_of_path(server, 'two.ipynb')['id']}")
    assert server.run(one, "print(x)") == "unsaved work"
    # Another kernel is chosen for the last notebook.
    plain = server.call("POST", "api/kernels", {"name": "python3"})["id"]
    session = session_of_path(server, "one.ipynb")
    server.call("PATCH", f"api/sessions/{session['id']}", {"kernel": {"id": plain}})
    assert live.name in server.env.instances()
    assert [one["name"] for one in server.get("api/kernels")].count(PREFIX + live.name) == 0
    again = server.open("three.ipynb", PREFIX + live.name)
    assert server.run(again, "print(x)") == "unsaved work"
    server.call("DELETE", f"api/kernels/{again}")
    server.call("DELETE", f"api/sessions/{session['id']}")
    assert live.name in server.env.instances()
    server.env.stop(live.name)
    client.remove(server.env.repo, live.name)


def session_of_path(server: JupyterServer, path: str) -> dict[str, Any]:
    return next(s for s in server.get("api/sessions") if s["path"] == path)


def test_a_renamed_notebook_is_followed(server: JupyterServer, kernel: str) -> None:
    session = session_of(server, kernel)
    server.call("PATCH", "api/contents/study.ipynb", {"path": "renamed.ipynb"})
    server.call("PATCH", f"api/sessions/{session['id']}", {"path": "renamed.ipynb", "name": "renamed.ipynb"})
    saved = server.env.save(server.instance(kernel))
    assert server.ask("document", snapshot=saved)["document"]["cells"][0]["source"] in ("1 + 1", ["1 + 1"])
    assert next(s for s in server.ask("tree")["snapshots"] if s["id"] == saved)["notebook"] == "renamed.ipynb"


def test_what_is_done_in_a_terminal_is_an_event_on_the_bus(server: JupyterServer, kernel: str) -> None:
    server.ask("status", kernel=kernel)
    with server.listening() as heard:
        saved = server.env.save(server.instance(kernel), "from a terminal")
        event = heard.until("saved")
    assert (event["snapshot"], event["kernel"], event["text"]) == (saved, kernel, "from a terminal")


def test_a_save_in_a_terminal_has_the_notebook_as_the_browser_has_it(server: JupyterServer, kernel: str) -> None:
    server.ask("status", kernel=kernel)
    with server.listening() as heard, ThreadPoolExecutor(1) as terminal:
        saved = terminal.submit(server.env.save, server.instance(kernel))
        event = heard.until("document")
        assert event["kernel"] == kernel
        assert server.do("give", kernel=kernel, ticket=event["text"], document=notebook("not on disk"))["taken"]
    assert server.ask("document", snapshot=saved.result())["document"] == notebook("not on disk")


def test_what_a_cell_waits_for_can_be_typed_from_the_panel(server: JupyterServer, kernel: str) -> None:
    server.begin(kernel, "name = input('who? ')", until="waiting_for_input", allow_stdin=True)
    assert server.ask("status", kernel=kernel)["prompt"] == "who? "
    server.do("input", kernel=kernel, value="me")
    assert server.run(kernel, "print(name)") == "me"
