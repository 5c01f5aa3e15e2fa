"""Kernels of other languages through the same panel: R, bash and Octave, where they can be had."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab

from ijfs.jupyter import kernelspec

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.criu,
    pytest.mark.skipif(
        not os.environ.get("IJFS_TEST_LANGUAGES"),
        reason="IJFS_TEST_LANGUAGES=1 runs it: now and then the keeper takes an idle bash kernel for a busy one",
    ),
]

R_KERNEL = Path("/usr/lib/R/site-library/IRkernel")


@dataclass(frozen=True)
class Language:
    """A kernel, what it needs, and how one assigns and shows a value in its language."""

    name: str
    argv: tuple[str, ...]
    needs: str
    is_there: Callable[[], bool]
    assign: str
    show: str


LANGUAGES = (
    Language(
        "bash",
        (sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"),
        "bash_kernel (tools/setup-browser)",
        lambda: importlib.util.find_spec("bash_kernel") is not None,
        "x={}",
        "echo $x",
    ),
    Language(
        "R",
        ("R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"),
        "the Debian package r-cran-irkernel",
        lambda: shutil.which("R") is not None and R_KERNEL.is_dir(),
        "x <- {}",
        "cat(x)",
    ),
    Language(
        "octave",
        (sys.executable, "-m", "octave_kernel", "-f", "{connection_file}"),
        "octave and the Python package octave_kernel",
        lambda: shutil.which("octave") is not None and importlib.util.find_spec("octave_kernel") is not None,
        "x = {};",
        "printf('%d', x)",
    ),
)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_another_language_goes_back_through_the_same_panel(lab: Lab, language: Language) -> None:
    if not language.is_there():
        pytest.skip(f"needs {language.needs}")
    notebook = lab.notebook(
        language.assign.format(1), language.assign.format(2), language.show, kernel=spec_of(language)
    )
    notebook.run(0)
    lab.save(f"{language.name}: x is one")
    notebook.run(1)
    assert notebook.run(2) == "2"
    lab.go_back(f"{language.name}: x is one")
    assert notebook.run(2) == "1"


def spec_of(language: Language) -> str:
    """A kernel spec for it in a sandbox, made from a plain one."""
    folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", language.name.lower())
    folder.mkdir(parents=True)
    plain = {"argv": language.argv, "display_name": language.name, "language": language.name, "env": {"PS1": "$"}}
    (folder / "kernel.json").write_text(json.dumps(plain))
    return kernelspec.install(language.name.lower()).name
