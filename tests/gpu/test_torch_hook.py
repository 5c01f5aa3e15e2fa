"""GPU programs listen for saves once torch is imported, and no other program does; tried with a stand-in named torch
(what empty_cache saves is measured by bench/gpu.py on a GPU)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ijfs.guest import PYTHON_PATH, TORCH_PATH
from ijfs.guest.hooks import end_compile_workers

PROGRAM = """
import sys, threading
before = {thread.name for thread in threading.enumerate()}
import torch
after = {thread.name for thread in threading.enumerate()}
print(torch.answer, sorted(before), sorted(after), "ijfs" in sys.modules, sys.modules["sitecustomize"].__file__)
"""


def run(path: Path, *first: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*first, str(path)]), "IJFS_GUEST": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout


def test_importing_torch_starts_the_hook_and_the_environments_own_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("answer = 42")
    (tmp_path / "sitecustomize.py").write_text("")
    with_hook = run(tmp_path, PYTHON_PATH, TORCH_PATH)
    # Nobody listens at the guest port here, so the hook is announced again and again.
    assert (
        with_hook
        == f"42 ['MainThread'] ['MainThread', 'ijfs-announce', 'ijfs-hooks'] True {tmp_path}/sitecustomize.py\n"
    )
    without = run(tmp_path, PYTHON_PATH)
    assert without == f"42 ['MainThread'] ['MainThread'] False {tmp_path}/sitecustomize.py\n"


def test_a_program_without_torch_fails_as_it_would_without_us(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHON_PATH, TORCH_PATH])}
    code = "try:\n import torch\nexcept ModuleNotFoundError as error:\n print(error.name)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "torch\n"


def test_vllm_sleeps_in_memory_that_comes_in_with_the_rest(tmp_path: Path) -> None:
    package = tmp_path / "vllm/device_allocator"
    package.mkdir(parents=True)
    (tmp_path / "vllm/__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "cumem.py").write_text("PIN_MEMORY = True\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHON_PATH, TORCH_PATH, str(tmp_path)])}
    code = "from vllm.device_allocator import cumem; print(cumem.PIN_MEMORY)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Compiling(ModuleType):
    """A stand-in for torch._inductor.async_compile with one pool of compile workers."""

    def __init__(self, **pool: object) -> None:
        super().__init__("torch._inductor.async_compile")
        self._pool_set = [SimpleNamespace(**pool)]
        self.ended = 0

    def shutdown_compile_workers(self) -> None:
        self._pool_set.clear()
        self.ended += 1


@pytest.mark.parametrize(
    ("pool", "ended"),
    [
        ({"pending_futures": {}}, 1),
        ({"pending_jobs": {}}, 1),
        ({"_pending_work_items": {}}, 1),
        ({"pending_futures": {1: "a kernel"}}, 0),
        ({"something_else": {}}, 0),
    ],
)
def test_compile_workers_end_before_a_save_unless_they_compile(
    pool: dict[str, object], ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Compiling(**pool)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    end_compile_workers()
    end_compile_workers()
    assert module.ended == ended


def test_without_torch_there_is_nothing_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._inductor.async_compile", raising=False)
    end_compile_workers()
