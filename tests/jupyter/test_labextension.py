"""The panel for JupyterLab without a browser: that what is shipped was built from the sources, and its pure parts."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "labextension"
BUILT = SOURCES / "built"


def test_the_built_panel_is_the_sources_build() -> None:
    """`make labextension` writes down what it was made from."""
    made_from = dict(reversed(line.split("  ")) for line in (BUILT / "made-from").read_text().splitlines())
    assert made_from == {name: _digest(SOURCES / name) for name in _source_names()}, "run `make labextension`"


def test_the_built_panel_is_whole() -> None:
    load = json.loads((BUILT / "package.json").read_text())["jupyterlab"]["_build"]["load"]
    assert (BUILT / load).is_file()
    assert json.loads((BUILT / "schemas/ijfs-panel/panel.json").read_text())["properties"]["document"]


def test_the_lock_names_no_registry() -> None:
    """npm fetches from whatever registry its own configuration names, and the hashes decide what is accepted."""
    packages = json.loads((SOURCES / "package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if "resolved" in package] == []
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []


def test_pure_parts_of_the_panel() -> None:
    """labextension/test by node's own test runner; the node that playwright brings reads TypeScript as it is."""
    playwright = pytest.importorskip("playwright", reason="needs playwright (tools/setup-browser)")
    node = Path(playwright.__file__).parent / "driver" / "node"
    tests = sorted((SOURCES / "test").glob("*.test.ts"))
    done = subprocess.run([node, "--no-warnings", "--test", *tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _source_names() -> list[str]:
    folders = [
        path for folder in ("src", "style", "schema") for path in (SOURCES / folder).rglob("*") if path.is_file()
    ]
    files = [SOURCES / name for name in ("package.json", "package-lock.json", "tsconfig.json")]
    return [str(path.relative_to(SOURCES)) for path in folders + files]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
