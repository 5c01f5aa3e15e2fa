"""What a program does to itself through its keeper: go back, be copied, give names. Real kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from jupyter_client.manager import KernelManager
from jupyter_env import KERNEL, Cells, JupyterEnv
from waiting import eventually

from ijfs.jupyter.cells import run_cell
from ijfs.live.client import api as client
from ijfs_engine import Repository

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


@pytest.fixture
def cells(jupyter_env: JupyterEnv) -> Iterator[Cells]:
    manager = KernelManager(kernel_name=KERNEL)
    manager.start_kernel()
    found = Cells(manager)
    found("import ijfs; get_ipython().run_line_magic('load_ext', 'ijfs')")
    yield found
    found.close()


def aborted(cells: Cells, code: str) -> None:
    """Run a cell whose kernel goes back meanwhile: it is answered, and nothing waits."""
    request = cells.client.execute(code)
    assert eventually(lambda: _reply(cells, request) == "aborted", 60)


def _reply(cells: Cells, request: str) -> str:
    message = cells.client.get_shell_msg(timeout=60)
    return str(message["content"]["status"]) if message["parent_header"].get("msg_id") == request else ""


def test_undo_goes_back_and_forward_again_it_returns(jupyter_env: JupyterEnv, cells: Cells) -> None:
    name = jupyter_env.the_instance()
    cells("x = 1")
    one = jupyter_env.save(name, "one")
    cells("x = 2")
    aborted(cells, "ijfs.undo(); x = 'forward'")
    assert cells("print(x)") == "1"
    with Repository.open(jupyter_env.repo) as repository:
        (left,) = [s.id.hex() for s in repository.snapshots(1)]
    assert left != one
    client.restore(jupyter_env.repo, left, name, replace=True)
    assert cells("print(x)") == "forward"


def test_a_program_is_copied_and_each_copy_knows_its_number(jupyter_env: JupyterEnv, cells: Cells) -> None:
    shown = cells("n = ijfs.fork(2); print(int(n), *n.names)")
    number, *names = shown.split()
    assert (number, len(names)) == ("0", 2)
    try:
        for expected, name in enumerate(names, 1):
            copy = client.describe(jupyter_env.repo, name)
            assert copy.connection_file is not None
            assert run_cell(copy.connection_file, "print(int(n), n.name)", 60).stdout.split() == [str(expected), name]
    finally:
        for name in names:
            jupyter_env.stop(name)
            client.remove(jupyter_env.repo, name)


def test_a_try_that_raises_never_was(jupyter_env: JupyterEnv, cells: Cells) -> None:
    cells("x = []")
    cells("%%ijfs try\nx.append(1)")
    assert cells("print(x)") == "[1]"
    aborted(cells, "%%ijfs try\nx.append(2)\n1/0")
    assert cells("print(x)") == "[1]"


def test_names_are_given_and_snapshots_shown_from_a_cell_and_what_removes_is_refused(
    jupyter_env: JupyterEnv, cells: Cells
) -> None:
    saved = jupyter_env.save(jupyter_env.the_instance(), "to be named")
    cells(f"%ijfs tag kept {saved[:12]}")
    with Repository.open(jupyter_env.repo) as repository:
        assert repository.refs.tags()["kept"].hex() == saved
    assert "to be named" in cells("%ijfs show kept")
    assert cells("%ijfs tag -d kept") == "UsageError"
    assert cells("%ijfs nonsense") == "UsageError"
    assert "to be named" in cells(f"!{sys.executable} -P -m ijfs.cli show kept")
