"""The same panel in Notebook 7: the left sidebar of a page with one notebook."""

from __future__ import annotations

import json

import pytest
from jupyter_http import TOKEN
from lab import Lab, document
from playwright.sync_api import expect

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


def test_the_panel_saves_and_goes_back_in_notebook_7(lab: Lab) -> None:
    pytest.importorskip("notebook", reason="needs notebook (tools/setup-browser)")
    (lab.server.root / "seven.ipynb").write_text(json.dumps(document(("x = 1", "x = 2"), "ijfs-python3")))
    page = lab.page.context.new_page()
    try:
        page.goto(f"{lab.server.url}notebooks/seven.ipynb?token={TOKEN}")
        page.evaluate(READY)
        prompts = page.locator(".jp-Cell .jp-InputPrompt")
        page.locator(".jp-Cell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        expect(prompts.nth(0)).to_have_text("[1]:")
        page.keyboard.press("Control+Alt+h")
        panel = page.get_by_role("region", name="Snapshots", exact=True)
        panel.get_by_role("button", name="Save", exact=True).click()
        page.locator(".jp-Dialog-content input").fill("in notebook 7")
        page.locator(".jp-Dialog-content").get_by_role("button", name="Save").click()
        row = panel.locator(".ijfs-Row", has_text="in notebook 7")
        expect(row).to_be_visible()
        page.locator(".jp-Cell .cm-content").nth(1).click()
        page.keyboard.press("Control+Enter")
        expect(prompts.nth(1)).to_have_text("[2]:")
        row.click()
        panel.get_by_role("button", name="Go back here").click()
        expect(prompts.nth(1)).to_have_text("[ ]:")
    finally:
        page.close()


READY = """async () => {
    const context = () => window.jupyterapp?.shell.currentWidget?.sessionContext;
    while (!context()?.session?.kernel) { await new Promise(requestAnimationFrame); }
    await context().session.kernel.info;
}"""
"""Wait until the notebook's kernel has answered."""
