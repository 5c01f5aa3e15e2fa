"""The keeper's side of a program's terminal: who has it inside (terminal_server.c), and how that is started."""

from __future__ import annotations

import importlib.machinery
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ijfs.live.model.paths import TERMINAL_INSIDE, SandboxPaths
from ijfs.live.model.records import Terminal
from ijfs.live.sandbox.lower import program_inside

HOLDER = Path(__file__).with_name(f"terminal_server{importlib.machinery.EXTENSION_SUFFIXES[0]}")
"""The program; its name is that of an extension module, because setuptools compiles it as one."""

KEY_VARIABLE = "IJFS_TERMINAL"
"""terminal_server.c takes it out of the environment again."""


def put(paths: SandboxPaths) -> None:
    """Bring the program into a sandbox's writable layer: it is saved with the rest, and needs nothing of a base."""
    copy = paths.upper / TERMINAL_INSIDE.lstrip("/")
    shutil.copyfile(HOLDER, copy)
    copy.chmod(0o755)


def words(
    terminal: Terminal, argv: Sequence[str], roots: Sequence[Path], cwd: str, environment: Mapping[str, str]
) -> list[str]:
    """The command line that runs `argv` at that terminal. The search path is looked through here, as in `roots`."""
    found = (program_inside(root, argv[0], cwd, environment) for root in roots)
    path = next((path for path in found if path is not None), argv[0])
    return [TERMINAL_INSIDE, str(terminal.rows), str(terminal.columns), path, *argv]
