"""What docs/testing.md says of second runs, on a small project with the conftest of these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_rerunfailures")

CONFTEST = Path(__file__).parents[1] / "conftest.py"

# The module's and the session's fixture tell what they do. A test fails in the run in which its file is new.
PROGRAMS = """
import pathlib, pytest, sys

def log(line):
    with open("log", "a") as file:
        print(line, file=file)

@pytest.fixture(scope="session")
def session():
    log("session up")
    yield
    log("session down")

@pytest.fixture(scope="module")
def shared(session):
    log("module up")
    yield set()
    log("module down")

@pytest.fixture(scope="module")
def fails_once(session):
    with fresh("fixture"):
        yield

def fresh(name):
    path = pathlib.Path(name)
    return new() if not path.exists() and not path.touch() else path.open()

def new():
    raise AssertionError("the first time")

def test_before(shared):
    shared.add("before")

def test_once(shared):
    assert "mine" not in shared, "what the failed run left is not in the second one's way"
    shared.add("mine")
    fresh("once").close()

def test_always():
    raise ValueError("each time")

def test_with_a_fixture_that_fails_once(fails_once, shared):
    pass

def test_after(shared):
    log("after")
"""


ENGINE = "def test_fails():\n    assert False\n"
MANY = "import pytest\n@pytest.mark.parametrize('number', range(20))\ndef test_fails(number):\n    assert False\n"


def test_what_starts_programs_is_run_again_once_with_everything_made_anew_and_the_engine_never(tmp_path: Path) -> None:
    for name, text in {"engine/test_1.py": ENGINE, "live/test_2.py": PROGRAMS, "live/test_3.py": MANY}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "conftest.py").write_bytes(CONFTEST.read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -raR --strict-markers\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "rerunfailures"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout
    assert done.returncode == 1, said
    assert "22 failed, 4 passed, 5 rerun" in said, "where much fails, not all of it is run again"
    assert "RERUN live/test_2.py::test_once" in said
    assert "AssertionError: the first time" in said, "what made the second run necessary"
    assert "RERUN engine" not in said
    assert (tmp_path / "log").read_text().splitlines() == [
        *("session up", "module up", "module down", "session down"),
        *("session up", "module up", "module down", "session down"),
        *("session up", "session down"),
        *("session up", "module up", "after", "module down", "session down"),
    ]
