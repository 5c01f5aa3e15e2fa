"""For what a snapshot of a deployment may be used: the same program, files, settings, driver and GPU; else it is made
anew.

What is looked at: the command, its variables, its hooks; the executable, every word of the command that is a file or a
directory here, what `watched` names, a model's revision in Hugging Face's cache; the packages that a Python has; the
GPU's driver and types. Files are compared by name, size and time of change: reading a model's weights would take as
long as loading them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from ijfs.deployments.records import DeploymentSpec

MOST_FILES = 20_000
"""Of a directory that is named: one with more (a home directory, say) is known by these."""


def key_of(spec: DeploymentSpec) -> str:
    """A hash of all that a snapshot depends on, as it is now."""
    program = spec.program
    facts = {
        "argv": program.argv,
        "cwd": program.cwd,
        "variables": spec.variables,
        "hooks": msgspec.to_builtins(program.hooks),
        "base": program.base,
        "inside": spec.inside,
        "files": [fact for path in _paths(spec) for fact in _facts(Path(path))],
        "model": [_revision(word) for word in program.argv],
        "packages": _packages(program.argv[0]),
        "gpu": _gpu() if program.gpu else [],
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _paths(spec: DeploymentSpec) -> Iterator[str]:
    yield shutil.which(spec.program.argv[0]) or spec.program.argv[0]
    for word in spec.program.argv[1:]:
        path = os.path.join(spec.program.cwd, word)
        if os.path.exists(path):
            yield path
    yield from spec.watched


def _facts(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of what is in a directory."""
    with suppress(OSError):
        if not path.is_dir():
            stat = path.stat()
            yield str(path), stat.st_size, stat.st_mtime_ns
            return
    count = 0
    for directory, names, files in os.walk(path):
        names.sort()
        for name in sorted(files):
            count += 1
            if count > MOST_FILES:
                return
            with suppress(OSError):
                stat = os.stat(os.path.join(directory, name))
                yield os.path.join(directory, name), stat.st_size, stat.st_mtime_ns


def _revision(word: str) -> str:
    """The commit of a model that Hugging Face's cache has under that name, "" for any other word."""
    if word.count("/") != 1 or word.startswith(("-", "/", ".")):
        return ""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    with suppress(OSError):
        return (home / "hub" / f"models--{word.replace('/', '--')}" / "refs/main").read_text().strip()
    return ""


def _packages(program: str) -> list[tuple[str, int]]:
    """When packages last came or went in the environment of a Python program."""
    executable = shutil.which(program)
    if executable is None:
        return []
    found = []
    for home in (Path(executable).parent.parent, Path(os.path.realpath(executable)).parent.parent):
        for site in sorted(home.glob("lib/python3*/*-packages")):
            with suppress(OSError):
                found.append((str(site), site.stat().st_mtime_ns))
    return found


def _gpu() -> list[str]:
    from ijfs.live.gpu.nvml import inventory

    machine = inventory()
    return [machine.driver_version, *(gpu.name for gpu in machine.gpus)]
