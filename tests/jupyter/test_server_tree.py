"""The panel's API: what there is to see. A real server, over HTTP, with real kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jupyter_env import JupyterEnv
from jupyter_http import JupyterServer, RefusedError

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@pytest.fixture(scope="module")
def server(jupyter_env: JupyterEnv, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    running = JupyterServer(jupyter_env, tmp_path_factory.mktemp("notebooks") / "root")
    yield running
    running.close()


def test_before_anything_was_saved_the_tree_is_empty_and_no_error(server: JupyterServer) -> None:
    tree = server.ask("tree")
    assert (tree["snapshots"], tree["rows"], tree["live"]) == ([], [], [])
    assert tree["repository"] == str(server.env.repo) == server.ask("info")["repository"]


def test_the_tree_of_a_notebook_is_laid_out_and_says_where_its_kernel_stands(server: JupyterServer) -> None:
    kernel, other = server.open("dir/study.ipynb"), server.open("other.ipynb")
    name = server.instance(kernel)
    assert server.ask("status", kernel=kernel)["snapshot"] is None
    first = server.env.save(name, "first")
    second = server.env.save(name, "second")
    apart = server.env.save(server.instance(other), "apart")
    tree = server.ask("tree", kernel=kernel, path="dir/study.ipynb", scope="notebook")
    assert [row["id"] for row in tree["rows"]] == [first, second]
    assert [row["strokes"] for row in tree["rows"]] == [[["snapshot", 0]]] * 2
    assert (tree["instance"], tree["here"]) == (name, second)
    newest = tree["snapshots"][0]
    assert (newest["message"], newest["parents"], newest["live"]) == ("second", [first], [name])
    assert (newest["notebook"], newest["kernel"], newest["auto"]) == ("dir/study.ipynb", True, False)
    (live,) = tree["live"]
    assert (live["kernel"], live["path"]) == (kernel, "dir/study.ipynb")
    whole = server.ask("tree", kernel=kernel)
    assert [row.get("id") for row in whole["rows"]] == [first, second, None, apart]
    status = server.ask("status", kernel=kernel)
    assert (status["snapshot"], status["message"], status["attached"]) == (second, "second", False)
    for one in (kernel, other):
        server.call("DELETE", f"api/kernels/{one}")


def test_what_is_asked_wrongly_is_refused_in_a_sentence(server: JupyterServer) -> None:
    with pytest.raises(RefusedError) as refused:
        server.ask("status", kernel="nobody")
    assert (refused.value.status, refused.value.said["type"]) == (404, "UnknownKernelError")
    with pytest.raises(RefusedError) as refused:
        server.ask("tree", scope="everything")
    assert (refused.value.status, refused.value.said["type"]) == (400, "UsageError")


def test_a_kernel_that_is_not_ours_is_no_error_to_ask_about(server: JupyterServer) -> None:
    kernel = server.open("plain.ipynb", "python3")
    status = server.ask("status", kernel=kernel)
    assert not status["ijfs"]
    assert "ijfs" in status["hint"]
    server.call("DELETE", f"api/kernels/{kernel}")
