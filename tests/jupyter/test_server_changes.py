"""The panel's API: what changes something. A real server, over HTTP, with real kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyter_env import JupyterEnv
from jupyter_http import JupyterServer, RefusedError, notebook

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@pytest.fixture(scope="module")
def server(jupyter_env: JupyterEnv, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    running = JupyterServer(jupyter_env, tmp_path_factory.mktemp("notebooks") / "root")
    yield running
    running.close()


@pytest.fixture(scope="module")
def kernel(server: JupyterServer) -> Iterator[str]:
    """One kernel for all tests: starting one takes a second."""
    started = server.open("study.ipynb")
    yield started
    server.call("DELETE", f"api/kernels/{started}")


def test_a_save_has_the_browsers_document_and_going_back_brings_it_and_keeps_what_was_left(
    server: JupyterServer, kernel: str
) -> None:
    server.run(kernel, "x = 1")
    first = server.do("save", kernel=kernel, message="one", document=notebook("x = 1"))
    assert server.ask("document", snapshot=first["snapshot"])["document"] == notebook("x = 1")
    server.run(kernel, "x = 2")
    back = server.do("restore", kernel=kernel, snapshot=first["snapshot"], document=notebook("x = 2"))
    assert (back["snapshot"], back["document"]) == (first["snapshot"], notebook("x = 1"))
    assert server.run(kernel, "print(x)") == "1"
    assert server.ask("document", snapshot=back["left"])["document"] == notebook("x = 2")
    forward = server.do("restore", kernel=kernel, snapshot=back["left"], save_first=False)
    assert (forward["left"], server.run(kernel, "print(x)")) == (None, "2")


def test_undo_goes_back_to_before_the_last_cell_and_says_how_many_it_undoes(server: JupyterServer) -> None:
    kernel = server.open("undone.ipynb")
    with pytest.raises(RefusedError) as refused:
        server.do("undo", kernel=kernel)
    assert refused.value.status == 404
    server.type(kernel, "x = 1")
    first = server.do("save", kernel=kernel)["snapshot"]
    server.type(kernel, "x = 2")
    second = server.do("save", kernel=kernel)["snapshot"]
    undone = server.do("undo", kernel=kernel)
    assert (undone["snapshot"], undone["cells"], undone["exact"]) == (first, 1, True)
    assert server.run(kernel, "print(x)") == "1"
    server.do("restore", kernel=kernel, snapshot=second, save_first=False)
    assert server.ask("status", kernel=kernel)["count"] == 2
    server.type(kernel, "x = 3")
    server.type(kernel, "x = 4")
    undone = server.do("undo", kernel=kernel)
    assert (undone["snapshot"], undone["cells"], undone["exact"]) == (second, 2, False)
    server.call("DELETE", f"api/kernels/{kernel}")


def test_a_kernel_that_runs_a_cell_is_not_taken_back_unless_that_is_asked_for(
    server: JupyterServer, kernel: str
) -> None:
    saved = server.do("save", kernel=kernel)["snapshot"]
    server.begin(kernel, "import time; time.sleep(600)")
    with pytest.raises(RefusedError) as refused:
        server.do("restore", kernel=kernel, snapshot=saved)
    assert (refused.value.status, refused.value.said["type"]) == (409, "KernelBusyError")
    back = server.do("restore", kernel=kernel, snapshot=saved, save_first=False, busy="interrupt")
    assert any("was interrupted" in notice for notice in back["notices"])
    assert not server.ask("status", kernel=kernel)["busy"]


def test_cells_and_files_of_two_snapshots_are_compared(server: JupyterServer, kernel: str) -> None:
    old, new = notebook("a = 1", "b = 2"), notebook("a = 1", "b = 3", "c = 4")
    first = server.do("save", kernel=kernel, document=old)["snapshot"]
    server.run(kernel, "open('out.csv', 'w').write('1,2')")
    second = server.do("save", kernel=kernel, document=new)["snapshot"]
    found = server.ask("compare", old=first, new=second)
    assert (found["cells_error"], found["files_error"]) == (None, None)
    assert [cell["change"] for cell in found["cells"]] == ["same", "changed", "added"]
    assert found["cells"][1]["lines"] == [["-", "b = 2"], ["+", "b = 3"]]
    assert [f["change"] for f in found["files"] if f["path"].endswith("out.csv")] == ["added"]
    took = server.do("adopt", snapshot=second)
    assert [file["path"] for file in took["files"]] == [str(server.root / "out.csv")]
    assert (server.root / "out.csv").read_text() == "1,2"


def test_variables_of_a_snapshot_and_of_the_kernel_as_it_is_now_are_compared(
    server: JupyterServer, kernel: str
) -> None:
    server.run(kernel, "import numpy, threading; a = numpy.arange(6); same = [1, 2]; lock = threading.Lock(); gone = 1")
    saved = server.do("save", kernel=kernel)["snapshot"]
    server.run(kernel, "a[0] = 7; del gone; new = 'text'; open('live.csv', 'w').close()")
    found = server.ask("compare", old=saved, new="live", kernel=kernel, parts="cells,files,variables")
    assert found["variables_error"] is None
    assert (found["cells"], found["files_error"]) == ([], None)
    assert "as it is in the browser" in found["cells_error"]  # and not that nothing changed
    typed = server.do("compare", old=saved, new="live", kernel=kernel, parts="cells", document=notebook("typed = 1"))
    assert [(cell["new"], typed["cells_error"]) for cell in typed["cells"]] == [("typed = 1", None)]
    assert [f["change"] for f in found["files"] if f["path"].endswith("live.csv")] == ["added"]
    changes = {one["name"]: one["change"] for one in found["variables"]}
    wanted = {"a": "changed", "same": "same", "lock": "unknown", "gone": "removed", "new": "added"}
    assert {name: change for name, change in changes.items() if name in wanted} == wanted
    (a,) = [one for one in found["variables"] if one["name"] == "a"]
    assert a["new"] == {"type": "numpy.ndarray", "shape": [6], "size": 48}
    assert server.env.instances() == [server.instance(kernel)]
    assert server.run(kernel, "print(dir().count('found'))") == "0"


def test_names_are_given_moved_and_taken_and_what_they_hold_is_not_removed(server: JupyterServer, kernel: str) -> None:
    first = server.do("save", kernel=kernel)["snapshot"]
    second = server.do("save", kernel=kernel)["snapshot"]
    assert server.do("tag", snapshot=first, name="kept")["snapshot"] == first
    with pytest.raises(RefusedError) as refused:
        server.do("tag", snapshot=second, name="kept")
    assert (refused.value.status, refused.value.said["type"]) == (409, "ConflictError")
    assert server.do("tag", snapshot=second, name="kept", force=True)["snapshot"] == second
    with pytest.raises(RefusedError):
        server.do("rename", branch=server.instance(kernel), name="other")
    assert server.do("rename", snapshot=first, name="aside")["name"] == "aside"
    assert server.do("rename", branch="aside", name="beside")["name"] == "beside"
    assert server.do("delete", snapshots=["beside"], dry_run=True)["removed"] == [first]
    assert server.do("delete", snapshots=[first])["bytes"] >= 0
    with pytest.raises(RefusedError) as refused:
        server.do("delete", snapshots=[second])
    assert refused.value.status == 409
    assert server.do("untag", name="kept")["snapshot"] == second
