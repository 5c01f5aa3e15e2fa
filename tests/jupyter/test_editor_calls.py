"""What an editor outside of the server asks of it, as VS Code does: kernel specs, a session for a notebook that the
server does not have, and messages as JSON over a WebSocket; no contents, no panel."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from jupyter_env import ANSWER_TIMEOUT_S, KERNEL, JupyterEnv
from jupyter_http import TOKEN, JupyterServer
from waiting import eventually

from ijfs.live.client import api as client

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@pytest.fixture(scope="module")
def server(jupyter_env: JupyterEnv, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterServer]:
    made = JupyterServer(jupyter_env, tmp_path_factory.mktemp("editor") / "root")
    yield made
    made.close()


class Channels:
    """A kernel's channels, as @jupyterlab/services opens them. To be closed."""

    def __init__(self, server: JupyterServer, kernel: str) -> None:
        self.session = uuid.uuid4().hex
        where = server.url.replace("http", "ws", 1) + f"api/kernels/{kernel}/channels?session_id={self.session}"
        header = [f"Authorization: token {TOKEN}"]
        self._socket = websocket.create_connection(where, header=header, timeout=ANSWER_TIMEOUT_S)

    def request(self, kind: str, **content: Any) -> str:
        """Send a request on the shell channel; its id."""
        ident = uuid.uuid4().hex
        header = {"msg_id": ident, "msg_type": kind, "session": self.session, "username": "", "version": "5.3"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        self._socket.send(json.dumps({**message, "channel": "shell", "buffers": []}))
        return ident

    def until(self, kind: str, ident: str) -> dict[str, Any]:
        """The content of the next message of that kind to that request."""
        while True:
            message = json.loads(self._socket.recv())
            if message["msg_type"] == kind and message["parent_header"].get("msg_id") == ident:
                content: dict[str, Any] = message["content"]
                return content

    def run(self, code: str) -> str:
        """Run a cell; what it printed."""
        ident = self.request("execute_request", code=code, silent=False, store_history=True, allow_stdin=False)
        return str(self.until("stream", ident)["text"])

    def close(self) -> None:
        self._socket.close()


def test_a_notebook_of_an_editor_outside_of_the_server(server: JupyterServer, jupyter_env: JupyterEnv) -> None:
    spec = server.get("api/kernelspecs")["kernelspecs"][KERNEL]["spec"]
    assert spec["language"] == "python"
    assert server.get("api/sessions") == []
    path = "idea-jvsc-0f3a.ipynb"
    asked = {"path": path, "name": path, "type": "notebook", "kernel": {"name": KERNEL}}
    session = server.call("POST", "api/sessions", asked)
    kernel = session["kernel"]["id"]
    channels = Channels(server, kernel)
    try:
        info = channels.until("kernel_info_reply", channels.request("kernel_info_request"))
        assert info["language_info"]["name"] == "python"
        assert channels.run("x = 20; print(x)") == "20\n"
        # Saved and taken back beside the editor, whose channels stay open.
        snapshot = jupyter_env.save(server.instance(kernel))
        assert channels.run("x = 0; print(x)") == "0\n"
        client.restore(jupyter_env.repo, snapshot, server.instance(kernel), replace=True)
        assert channels.run("print(x + 1)") == "21\n"
        sleeping = channels.request("execute_request", code="import time\nprint('on')\ntime.sleep(600)")
        channels.until("stream", sleeping)
        server.call("POST", f"api/kernels/{kernel}/interrupt")
        assert channels.until("execute_reply", sleeping)["ename"] == "KeyboardInterrupt"
    finally:
        channels.close()
    assert [found["id"] for found in server.get("api/kernels")] == [kernel]
    server.call("DELETE", f"api/sessions/{session['id']}")
    assert eventually(lambda: jupyter_env.instances() == [])
    assert not (Path(server.root) / path).exists()
