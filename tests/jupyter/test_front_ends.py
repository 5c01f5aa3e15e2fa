"""Jupyter's own programs, unchanged, on a sandboxed kernel: console, nbconvert, and a server's kernel manager."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_env import ANSWER_TIMEOUT_S, KERNEL, JupyterEnv
from waiting import eventually

from ijfs.jupyter.cells import run_cell
from ijfs.live.client import api as client
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


def test_nbconvert_executes_a_notebook_that_saves_in_the_middle(jupyter_env: JupyterEnv, tmp_path: Path) -> None:
    cells = ["x = 20", "import ijfs\nresult = ijfs.save('half way')\nx += 1", "print(2 * x, result.resumed)"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": KERNEL, "display_name": "Python 3 (ijfs)"}},
    )
    nbformat.write(notebook, tmp_path / "in.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "out.ipynb", "in.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "42 False\n"
    assert client.list_instances(jupyter_env.repo) == []
    with Repository.open(jupyter_env.repo) as repository:
        assert "half way" in [snapshot.message for snapshot in repository.snapshots()]


def test_console_in_a_terminal_through_a_going_back(jupyter_env: JupyterEnv) -> None:
    command = [sys.executable, "-m", "jupyter_console", "--simple-prompt", "--kernel", KERNEL]
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(command[0], command)
    try:
        until(terminal, b"In [1]")
        os.write(terminal, b"print('six times seven is', 6 * 7)\n")
        until(terminal, b"six times seven is 42")
        # Going back while the console waits at its prompt: it notices nothing, and hears the next cell's outputs.
        name = jupyter_env.the_instance()
        snapshot = jupyter_env.save(name)
        client.restore(jupyter_env.repo, snapshot, name, replace=True)
        os.write(terminal, b"print('six times nine is', 6 * 9)\n")
        until(terminal, b"six times nine is 54")
        os.write(terminal, b"exit\n")
        until(terminal, b"")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    # The console only asks its kernel to end, and does not wait for it.
    assert eventually(lambda: jupyter_env.instances() == [])
    (ended,) = client.list_instances(jupyter_env.repo)
    assert ended.exit_status == 0
    with Repository.open(jupyter_env.repo) as repository:
        (saved,) = [found for found in repository.snapshots() if found.message == "before `exit`"]
    back = client.restore(jupyter_env.repo, saved.id.hex(), "back")
    assert run_cell(back.connection_file, "print('it did not exit')", ANSWER_TIMEOUT_S).stdout == "it did not exit\n"
    jupyter_env.stop("back")
    client.remove(jupyter_env.repo, ended.name)
    client.remove(jupyter_env.repo, "back")


def until(terminal: int, text: bytes) -> bytes:
    """Read the terminal until `text` is there (b"": until it closes)."""
    seen = b""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    os.set_blocking(terminal, False)
    while not text or text not in seen:
        assert time.monotonic() < deadline, seen
        try:
            piece = os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        except OSError:  # EIO: the other end is closed
            piece = b""
        if not piece:
            assert not text, seen
            break
        seen += piece
    return seen


def test_a_servers_kernel_manager_starts_restarts_and_ends_it(jupyter_env: JupyterEnv, tmp_path: Path) -> None:
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

    async def live() -> None:
        kernels = AsyncMappingKernelManager(root_dir=str(tmp_path), connection_dir=str(tmp_path))
        (tmp_path / "work").mkdir()
        path = str(tmp_path / "Data Study.ipynb")
        kernel_id = await kernels.start_kernel(
            kernel_name=KERNEL, path="work", env={**os.environ, "JPY_SESSION_NAME": path}
        )
        assert jupyter_env.the_instance() == f"data-study-{kernel_id[:8]}"
        Path(path).write_bytes(document)
        saved.append(jupyter_env.save(jupyter_env.the_instance()))
        await kernels.restart_kernel(kernel_id)
        assert await kernels.get_kernel(kernel_id).is_alive()
        assert jupyter_env.the_instance() == f"data-study-{kernel_id[:8]}"
        await kernels.shutdown_all()

    saved: list[str] = []
    document = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    asyncio.run(live())
    assert client.list_instances(jupyter_env.repo) == []
    with Repository.open(jupyter_env.repo) as repository:
        reader = repository.reader()
        entry = reader.lookup(repository.snapshot(repository.resolve(saved[0])).root, "notebook.ipynb")
        assert reader.open(entry).read(0, entry.size) == document
