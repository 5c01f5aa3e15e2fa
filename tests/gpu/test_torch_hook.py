"""GPU programs listen for saves once torch is imported, and no other program does; tried with a stand-in named torch
(what empty_cache saves is measured by bench/gpu.py on a GPU)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ijfs.guest import PYTHON_PATH, TORCH_PATH

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
    assert with_hook == f"42 ['MainThread'] ['MainThread', 'ijfs-hooks'] True {tmp_path}/sitecustomize.py\n"
    without = run(tmp_path, PYTHON_PATH)
    assert without == f"42 ['MainThread'] ['MainThread'] False {tmp_path}/sitecustomize.py\n"


def test_a_program_without_torch_fails_as_it_would_without_us(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([PYTHON_PATH, TORCH_PATH])}
    code = "try:\n import torch\nexcept ModuleNotFoundError as error:\n print(error.name)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "torch\n"
