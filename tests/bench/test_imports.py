"""Each benchmark can be started: none asks for a name of ijfs that is no longer there."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import bench


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(bench.__path__)))
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import bench.{name}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
