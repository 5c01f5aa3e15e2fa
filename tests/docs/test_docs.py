"""The documentation points at what is there: its links, the files that it names, pictures drawn from their sources."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import json_schema

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
NOW = [page for page in PAGES if page.name not in ("CHANGELOG.md", "decisions.md")]
"""Pages that say how things are, not how they were."""

PLACES = [
    "",
    "ijfs/",
    "ijfs/live/",
    "ijfs/live/keeper/",
    "ijfs/fs/",
    "engine/",
    "engine/ijfs_engine/",
    "docs/",
    "bench/",
    "tests/",
]
"""What a file that a page names may be below."""

SHORT = {"E/": "engine/ijfs_engine/", "L/": "ijfs/live/"}
"""How docs/internals/life-of-a-page.md writes the two longest."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} is not there"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{target}: no such heading"


@pytest.mark.parametrize("page", NOW, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"(?ms)^(```.*?^```|    .*?$)", "", page.read_text())
    for named in re.findall(r"`([\w./]+/[\w.]+\.(?:py|pyx|h|toml|dot))`", text):
        path = SHORT.get(named[:2], named[:2]) + named[2:]
        assert any((ROOT / place / path).exists() for place in PLACES), f"`{named}` is not there"


@pytest.mark.parametrize("page", NOW, ids=name_of)
def test_modules_that_are_named_exist(page: Path) -> None:
    for named in set(
        re.findall(r"`((?:ijfs\.(?:live|fs|cli|sdk|mcp|jupyter|guest)|ijfs_engine)(?:\.[a-z_]+)+)", page.read_text())
    ):
        parts = named.split(".")
        where = ROOT / ("engine" if parts[0] == "ijfs_engine" else "")
        found = [where.joinpath(*parts[:end]) for end in range(len(parts), 1, -1)]
        module = any(path.is_dir() or path.with_suffix(".py").exists() for path in found[:2])
        assert module or parts[-1] in (where / parts[0] / "__init__.py").read_text(), f"`{named}` is not there"


PACKAGES = sorted([*ROOT.glob("ijfs/**/__init__.py"), *ROOT.glob("engine/ijfs_engine/**/__init__.py")])


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_packages_name_modules_that_they_have(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse(package.read_text()))
    assert docstring, "a package says what it is for"
    for named in re.findall(r"`(\w+\.py)`", docstring):
        assert (package.parent / named).exists(), f"`{named}` is not there"


def test_pictures_are_drawn_from_their_sources_as_they_are() -> None:
    check = subprocess.run(
        [sys.executable, ROOT / "tools/pictures.py", "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout


def test_the_pages_make_a_site(tmp_path: Path) -> None:
    """Each page is in the table of contents, and Sphinx finds nothing to warn of."""
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    commands = (tmp_path / "site/commands.html").read_text()
    assert 'id="ijfs-restore"' in commands
    assert "--replace" in commands


def test_the_json_schema_is_made_from_its_page() -> None:
    """`tools/json_schema.py` writes it."""
    assert json.loads(json_schema.SCHEMA.read_text()) == json_schema.schema()
