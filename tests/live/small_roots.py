"""A root file system of a few megabytes for tests of bases: a shell and a few tools, with what they link."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

TOOLS = ("sh", "sleep", "cat", "ls", "touch", "tini")


def make_root(root: Path) -> Path:
    """Make it in a new directory."""
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path is not None, f"{tool} is not here"
        _copy(Path(os.path.realpath(path)), root / "usr/bin" / tool)
        for library in _libraries(path):
            _copy(Path(library), root / library.lstrip("/"))
    for name in ("dev", "proc", "sys", "etc", "root", "tmp", "var/tmp", "run", "opt/data"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "etc/os-release").write_text('PRETTY_NAME="Small Root 1"\n')
    (root / "etc/motd").write_text("one\n")
    return root


def libc_of(root: Path) -> Path:
    """The C library that its programs map."""
    return next(root.rglob("libc.so.6"))


def _libraries(program: str) -> list[str]:
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return [word for line in done.stdout.splitlines() for word in line.split() if word.startswith("/")]


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
