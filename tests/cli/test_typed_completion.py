"""Completion as a person has it: bash, zsh and fish at a terminal, a few letters and the tab key.

Shells read what was typed ahead only when a completion is done, so that nothing here waits for a time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from calls import COMMAND, Ijfs
from waiting import patient

from ijfs_engine import Repository

SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(ijfs completion bash)"'),
    "zsh": (["-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(ijfs completion zsh)"'),
    "fish": (["--no-config", "-i"], "ijfs completion fish | source"),
}
TAB = "\t"

Type = Callable[[str, str], str]
"""Types some keys and waits until the screen has shown a pattern; what it had shown before that."""


@pytest.fixture
def main_id(ijfs: Ijfs, repo: Path, tmp_path: Path) -> str:
    """The snapshot at the branch `laboratory`."""
    (tmp_path / "tree").mkdir()
    assert ijfs("import", tmp_path / "tree", "--branch", "laboratory", "-q").code == 0
    with Repository.open(repo) as repository:
        return repository.resolve("laboratory").hex()


@pytest.fixture(params=sorted(SHELLS))
def typed(request: pytest.FixtureRequest, tmp_path: Path, main_id: str) -> Iterator[Type]:
    """A shell at a terminal that has loaded the completion; gone at the end."""
    shell: str = request.param
    program = shutil.which(shell)
    if program is None:
        assert shell != "bash", "bash is everywhere"
        pytest.skip(f"{shell} is not installed")
    places = tmp_path / "bin"
    places.mkdir()
    (places / "ijfs").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (places / "ijfs").chmod(0o755)
    env = {**os.environ, "PATH": f"{places}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "linux"}
    env |= {"ZDOTDIR": str(tmp_path), "INPUTRC": "/dev/null", "COLUMNS": "200"}
    options, load = SHELLS[shell]
    terminal = pexpect.spawn(
        program, options, env=env, cwd=tmp_path, dimensions=(40, 200), encoding="utf-8", timeout=patient(60)
    )

    def keys(what: str, until: str) -> str:
        terminal.send(what)
        terminal.expect(until)
        return str(terminal.before)

    try:
        keys("printf 'begun-%s\\n' yes\r", "begun-yes")
        keys(f"{load}\rprintf 'loaded-%s\\n' yes\r", "loaded-yes")
        yield keys
    finally:
        terminal.kill(signal.SIGKILL)
        terminal.close()


def test_letters_and_tabs_make_commands_that_run(typed: Type, main_id: str, tmp_path: Path) -> None:
    typed(f"ijfs sho{TAB}labo{TAB}--js{TAB}\r", f'"id": ?"{main_id}"')
    typed(f"ijfs kernel li{TAB}--js{TAB}\r", '"verb": ?"kernel list"')
    (tmp_path / "some-directory").mkdir()
    typed(f"ijfs import some-dir{TAB} --br{TAB}newer --js{TAB}\r", '"branch": ?"newer"')
    typed(f"ijfs st{TAB}{TAB}", "stats")
    shown = typed(f"\x15ijfs show nothing-of-tha{TAB}t; printf 'end-%s\\n' yes\r", "end-yes")
    assert "Traceback" not in shown
