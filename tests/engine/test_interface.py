"""What the engine shows to the other layers: the names of `ijfs_engine`, each loaded when first used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ijfs_engine

ROOT = Path(__file__).parents[2]
INSIDERS = {"bench/store_scale_build.py", "bench/store_memory.py"}
"""As in pyproject.toml, which says why."""


def _type_checked() -> dict[str, str]:
    """Name → module, of the imports that type checkers read in the package's __init__."""
    tree = ast.parse(Path(ijfs_engine.__file__).read_text())
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ijfs_engine."):
            found.update({alias.name: node.module.removeprefix("ijfs_engine.") for alias in node.names})
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_exported_name_is_where_the_table_says() -> None:
    lazily = {name: ijfs_engine._MODULE_OF.get(name, "errors") for name in ijfs_engine.__all__}
    assert lazily == _type_checked()
    assert len(set(ijfs_engine.__all__)) == len(ijfs_engine.__all__)
    for name in ijfs_engine.__all__:
        assert getattr(ijfs_engine, name) is not None


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Index'"):
        _ = ijfs_engine.Index  # type: ignore[attr-defined]


def test_importing_the_package_loads_none_of_its_modules() -> None:
    code = "import sys, ijfs_engine; print(sorted(name for name in sys.modules if name.startswith('ijfs_engine.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_other_layers_import_the_package_and_its_errors_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for layer in ("ijfs", "bench")
        for path in sorted((ROOT / layer).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in INSIDERS
        for module in _imports(path)
        if module.startswith("ijfs_engine.") and module != "ijfs_engine.errors"
    ]
    assert wrong == []
