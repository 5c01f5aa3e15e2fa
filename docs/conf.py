"""How Sphinx makes a site of these pages; `make docs` calls it. Links are checked by tests/docs as well."""

import re
from typing import Any

project = "ijfs"
author = "the authors of ijfs"
extensions = ["myst_parser", "sphinx_click"]
exclude_patterns = ["_site", "internals/pictures"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Pages are read on the forge too, where these point into the checkout.
suppress_warnings = ["myst.xref_missing"]
html_theme = "furo"
html_title = "ijfs"
html_static_path: list[str] = []
highlight_language = "console"

PAGES_OF_FILES = {"README": "index", "CONTRIBUTING": "contributing", "CHANGELOG": "changelog", "SECURITY": "security"}


def _link_to_pages(_app: object, _name: str, source: list[str]) -> None:
    """Let links to files of the checkout's top lead to their pages."""
    source[0] = re.sub(
        r"\]\(((?:\.\./)+)(README|CONTRIBUTING|CHANGELOG|SECURITY)\.md",
        lambda found: f"]({found[1].removeprefix('../')}{PAGES_OF_FILES[found[2]]}.md",
        source[0],
    )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _link_to_pages)
