"""`run_cell` against a real kernel; where the kernel runs makes no difference to it, so this one has no sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from jupyter_client.manager import KernelManager

from ijfs.jupyter.cells import CellTimeoutError, run_cell
from ijfs_engine.errors import TargetDiedError


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    root = tmp_path_factory.mktemp("kernel")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(name, str(root / name.lower()))
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        yield manager
        manager.shutdown_kernel(now=True)


def test_what_a_cell_prints_returns_and_raises(kernel: KernelManager) -> None:
    result = run_cell(
        kernel.connection_file,
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\n[1, 2]",
        30,
    )
    assert (result.status, result.stdout, result.stderr, result.result_text) == ("ok", "out\n", "err\n", "[1, 2]")
    failed = run_cell(kernel.connection_file, "print('first')\n1 / 0", 30)
    assert (failed.status, failed.stdout) == ("error", "first\n")
    assert "ZeroDivisionError: division by zero" in failed.error
    assert "\x1b" not in failed.error


def test_a_cell_that_raises_takes_nothing_down_that_is_queued_behind_it(kernel: KernelManager) -> None:
    outcome: list[str] = []
    raising = threading.Thread(
        target=lambda: outcome.append(
            run_cell(kernel.connection_file, "import time; time.sleep(1.0); 1 / 0", 30).status
        )
    )
    raising.start()
    run_cell(kernel.connection_file, "behind = True", 30)
    raising.join()
    assert outcome == ["error"]
    assert run_cell(kernel.connection_file, "behind", 30).result_text == "True"


def test_asking_for_input_fails_instead_of_waiting(kernel: KernelManager) -> None:
    assert "StdinNotImplementedError" in run_cell(kernel.connection_file, "input()", 30).error


def test_a_cell_that_takes_too_long_is_left_running(kernel: KernelManager) -> None:
    with pytest.raises(CellTimeoutError):
        run_cell(kernel.connection_file, "import time; time.sleep(4); late = True", 2)
    assert run_cell(kernel.connection_file, "late", 30).result_text == "True"


def test_outputs_of_other_clients_are_not_taken_for_ours(kernel: KernelManager) -> None:
    results: dict[str, str] = {}

    def run(text: str) -> None:
        code = f"import time\nfor _ in range(20): print({text!r}); time.sleep(0.01)"
        results[text] = run_cell(kernel.connection_file, code, 30).stdout

    threads = [threading.Thread(target=run, args=(text,)) for text in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {text: f"{text}\n" * 20 for text in ("a", "b", "c")}


def test_a_kernel_that_dies_under_a_cell_is_reported() -> None:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    try:
        code = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
        with pytest.raises(TargetDiedError):
            run_cell(manager.connection_file, code, alive=manager.is_alive)
        with pytest.raises(TargetDiedError):
            run_cell(manager.connection_file, "1", 30, alive=manager.is_alive)
    finally:
        manager.shutdown_kernel(now=True)


def test_importing_it_does_not_load_jupyter() -> None:
    program = "import sys, ijfs.jupyter.cells; sys.exit('jupyter_client' in sys.modules or 'zmq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=dict(os.environ)).returncode == 0
