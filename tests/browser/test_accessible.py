"""What axe, the checker that browsers' developer tools have, says of the panel in Lab's light and its dark theme."""

from __future__ import annotations

import pytest
from lab import Lab
from playwright.sync_api import expect

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]

THEMES = ("JupyterLab Dark", "JupyterLab Light")
PARTS = ("[aria-label=Snapshots][role=region]", ".ijfs-Compare", ".ijfs-Status-button", ".ijfs-CellMark")
GRAVE = ("serious", "critical")

THEME = """async name => {
    await window.jupyterapp.commands.execute('apputils:change-theme', { theme: name });
    while (document.body.dataset.jpThemeName !== name) { await new Promise(requestAnimationFrame); }
    await Promise.all(document.getAnimations().map(each => each.finished.catch(() => undefined)));
}"""


def test_nobody_is_kept_out_by_colours_names_or_keys(lab: Lab) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe (tools/setup-browser)")
    notebook = lab.notebook(
        "x = 1", "x = 2 + len('a line of code that is longer than the column which shows it, by far')"
    )
    notebook.run(0)
    lab.save("to look at")
    lab.button("Tag").click()
    lab.answer("OK", "seen")
    notebook.type(0, "x = 3")
    lab.row("to look at").click()
    lab.button("Compare").click()
    expect(lab.page.locator(".ijfs-CellDiff")).to_be_visible()
    for theme in THEMES:
        lab.page.evaluate(THEME, theme)
        found = axe.Axe().run(lab.page, {"include": [[part] for part in PARTS]})
        grave = [one for one in found.response["violations"] if one["impact"] in GRAVE]
        assert not grave, (theme, [(one["id"], [node["html"] for node in one["nodes"]]) for one in grave])
