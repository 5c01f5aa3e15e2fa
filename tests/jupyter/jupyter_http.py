"""A Jupyter server in a process of its own, spoken to over HTTP as a browser does."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_env import ANSWER_TIMEOUT_S, KERNEL, JupyterEnv
from waiting import eventually

from ijfs.jupyter.cells import run_cell
from ijfs.jupyter.server.events import SCHEMA_ID
from ijfs.live.model.paths import InstancePaths

TOKEN = "for-tests"


class RefusedError(AssertionError):
    """The server said no: its status, and what it said."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.said: dict[str, Any] = json.loads(body) if body.startswith("{") else {}


class Heard:
    """Events of ijfs on a server's bus."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self._connection = connection

    def until(self, kind: str) -> dict[str, Any]:
        """The next event of that kind; what comes before it is passed over."""
        while True:
            event: dict[str, Any] = json.loads(self._connection.recv())
            if event.get("schema_id") == SCHEMA_ID and event.get("kind") == kind:
                return event


class JupyterServer:
    """A server whose notebooks are in `root`; the environment is that of a JupyterEnv."""

    def __init__(self, env: JupyterEnv, root: Path, *options: str, program: str = "jupyter_server") -> None:
        self.env, self.root = env, root
        root.mkdir(exist_ok=True)
        command = [sys.executable, "-m", program, "--no-browser", "--allow-root", "--port=0"]
        given = [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", *options]
        self.log = (root.parent / f"{root.name}.log").open("w+")
        self.process = subprocess.Popen([*command, *given], stdout=self.log, stderr=self.log)
        where = env.root / "jupyter_runtime_dir" / f"jpserver-{self.process.pid}.json"
        assert eventually(lambda: self._url_in(where), 60), self.said()
        assert eventually(self._answers, 60), self.said()

    def _url_in(self, where: Path) -> bool:
        try:
            self.url = str(json.loads(where.read_text())["url"])
        except (OSError, ValueError):
            return False
        return True

    def _answers(self) -> bool:
        try:
            self.get("api/status")
        except urllib.error.URLError:
            return False
        return True

    def said(self) -> str:
        """Its log."""
        self.log.seek(0)
        return self.log.read()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; RefusedError for an answer that is an error."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(error.code, error.read().decode()) from None
        return json.loads(text) if text else None

    def get(self, where: str, /, **query: Any) -> Any:
        """Look."""
        return self.call("GET", where + ("?" + urllib.parse.urlencode(query) if query else ""))

    def ask(self, verb: str, /, **query: Any) -> Any:
        """A request of the panel that only looks."""
        return self.get(f"ijfs/api/{verb}", **query)

    def do(self, verb: str, /, **fields: Any) -> Any:
        """A request of the panel that does something."""
        return self.call("POST", f"ijfs/api/{verb}", fields)

    def open(self, path: str, kernel_name: str = KERNEL) -> str:
        """Open a notebook that is made with this: a session with a kernel of its own; the kernel's id."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        if not (self.root / path).exists():
            (self.root / path).write_text(json.dumps(notebook("1 + 1")))
        session = {"path": path, "name": Path(path).name, "type": "notebook", "kernel": {"name": kernel_name}}
        return str(self.call("POST", "api/sessions", session)["kernel"]["id"])

    def instance(self, kernel: str) -> str:
        """The instance that a kernel is."""
        return str(self.ask("status", kernel=kernel)["instance"])

    def run(self, kernel: str, code: str) -> str:
        """Run a cell in a kernel; what it printed."""
        return run_cell(str(self._connection(kernel)), code, ANSWER_TIMEOUT_S).stdout.strip()

    def _connection(self, kernel: str) -> Path:
        return InstancePaths.of(self.env.repo, self.instance(kernel)).connection_file

    def client(self, kernel: str) -> BlockingKernelClient:
        """A client of a kernel, to be stopped by who asks for it."""
        found = BlockingKernelClient(connection_file=str(self._connection(kernel)))
        found.load_connection_file()
        found.start_channels()
        assert eventually(lambda: _is_ready(found), ANSWER_TIMEOUT_S)
        return found

    def type(self, kernel: str, code: str) -> None:
        """Run a cell as a person does: it counts as a prompt."""
        client = self.client(kernel)
        try:
            reply = client.execute_interactive(code, timeout=ANSWER_TIMEOUT_S, allow_stdin=False)
            assert reply["content"]["status"] == "ok"
        finally:
            client.stop_channels()

    def begin(self, kernel: str, code: str, *, until: str = "busy", **options: Any) -> None:
        """Begin a cell that does not end by itself; back when the kernel's status says so."""
        client = self.client(kernel)
        try:
            client.execute(code, **options)
            assert eventually(lambda: self.ask("status", kernel=kernel)[until])
        finally:
            client.stop_channels()

    @contextmanager
    def listening(self) -> Iterator[Heard]:
        """What is said on the server's event bus meanwhile."""
        where = self.url.replace("http", "ws", 1) + "api/events/subscribe"
        connection = websocket.create_connection(
            where, header=[f"Authorization: token {TOKEN}"], timeout=ANSWER_TIMEOUT_S
        )
        try:
            yield Heard(connection)
        finally:
            connection.close()

    def close(self) -> None:
        """End it as Ctrl-C twice does, and its kernels with it."""
        self.process.terminate()
        self.process.wait(ANSWER_TIMEOUT_S)
        self.log.close()


def _is_ready(client: BlockingKernelClient) -> bool:
    """A heartbeat later than a second is death to jupyter_client; on a busy machine it is not to us."""
    try:
        client.wait_for_ready(timeout=ANSWER_TIMEOUT_S)
    except RuntimeError:
        return False
    return True


def notebook(*cells: str) -> dict[str, Any]:
    """A notebook with these code cells."""
    return {
        "cells": [
            {"id": f"c{i}", "cell_type": "code", "source": cell, "metadata": {}, "outputs": [], "execution_count": None}
            for i, cell in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": KERNEL, "display_name": "Python 3 (ijfs)", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
