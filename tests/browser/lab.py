"""JupyterLab in a browser, as a user has it before them: notebooks, the panel, dialogs, toasts."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from jupyter_http import TOKEN, JupyterServer
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from waiting import patient

LIMIT_MS = patient(60) * 1000
"""How long the browser may take to show something: a kernel's start with many others beside it, say."""

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The distribution's chromium without a screen, with a profile that is thrown away."""
    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", headless=True, args=list(FLAGS))
        yield browser
        browser.close()


class Notebook:
    """A notebook in a tab."""

    def __init__(self, lab: Lab, node: Locator, path: str) -> None:
        self.lab, self.node, self.path = lab, node, path

    def cell(self, index: int) -> Locator:
        """A cell by its place."""
        return self.node.locator(".jp-Cell").nth(index)

    def is_ready(self) -> None:
        """Wait until the kernel has answered, and has nothing to do."""
        self._wait("await widget.sessionContext.ready; await widget.sessionContext.session.kernel.info;")
        self.is_idle()

    def is_idle(self) -> None:
        """Wait until the kernel has nothing to do. (The toolbar shows that only where it is wide enough.)"""
        self._wait(
            "while (widget.sessionContext.session?.kernel?.status !== 'idle') await new Promise(requestAnimationFrame);"
        )

    def shows_idle(self) -> None:
        """Wait until the toolbar says that the kernel has nothing to do."""
        expect(self.node.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")

    def _wait(self, code: str) -> None:
        """Run some JavaScript about its widget to the end."""
        self.lab.page.wait_for_function(
            f"""async id => {{
                const widget = Array.from(window.jupyterapp.shell.widgets('main')).find(each => each.id === id);
                {code}
                return true;
            }}""",
            arg=self.node.get_attribute("id"),
        )

    def run(self, index: int) -> str:
        """Run a cell and wait for its end; what it printed or returned."""
        self.begin(index)
        expect(self.prompt(index)).to_have_text(re.compile(r"\[\d+\]:"))
        self.is_idle()
        return self.output(index)

    def begin(self, index: int) -> None:
        """Run a cell, and do not wait."""
        self.cell(index).locator(".cm-content").click()
        self.lab.page.keyboard.press("Control+Enter")

    def type(self, index: int, code: str) -> None:
        """Put code in the place of a cell's."""
        self.cell(index).locator(".cm-content").fill(code)

    def prompt(self, index: int) -> Locator:
        """What stands beside a cell: [3]:, [*]: or [ ]:."""
        return self.cell(index).locator(".jp-InputPrompt")

    def output(self, index: int) -> str:
        """The text below a cell."""
        return "\n".join(self.cell(index).locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def source(self, index: int) -> str:
        """The text of a cell."""
        return self.cell(index).locator(".cm-content").inner_text().strip()

    @property
    def session(self) -> dict[str, Any]:
        """Jupyter's session of it."""
        sessions = self.lab.server.get("api/sessions")
        return next(session for session in sessions if session["path"] == self.path)

    @property
    def kernel(self) -> str:
        """The id of its kernel."""
        return str(self.session["kernel"]["id"])

    @property
    def instance(self) -> str:
        """The program that its kernel is."""
        return self.lab.server.instance(self.kernel)


class Lab:
    """The one page."""

    def __init__(self, server: JupyterServer, browser: Browser) -> None:
        self.server = server
        self.page: Page = browser.new_context(viewport={"width": 1280, "height": 820}).new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(error.stack or str(error)))
        self._numbers = itertools.count(1)
        # A document that `clear` puts away while it is being saved says so a moment later, over the next test's page.
        put_away = self.page.locator(".jp-Dialog[aria-label*='Disposed']")
        self.page.add_locator_handler(put_away, lambda dialog: dialog.press("Escape"))
        self.page.goto(f"{server.url}lab?token={TOKEN}")
        self.page.wait_for_function("window.jupyterapp?.restored.then(() => true)")
        self.command("ijfs:show-panel")
        expect(self.panel).to_be_visible()

    # -- the page ---------------------------------------------------------------------------------------------------

    @property
    def panel(self) -> Locator:
        """The panel "Snapshots"."""
        return self.page.get_by_role("region", name="Snapshots", exact=True)

    @property
    def rows(self) -> Locator:
        """The snapshots in sight."""
        return self.panel.locator(".ijfs-Row[data-snapshot]")

    def row(self, text: str) -> Locator:
        """The row with this text."""
        return self.rows.filter(has_text=text)

    def button(self, name: str) -> Locator:
        """A button of the panel."""
        return self.panel.get_by_role("button", name=name, exact=True)

    @property
    def dialog(self) -> Locator:
        """The question that is asked."""
        return self.page.locator(".jp-Dialog-content")

    def answer(self, button: str, text: str | None = None) -> None:
        """Answer the question that is asked."""
        if text is not None:
            self.dialog.locator("input").fill(text)
        self.dialog.get_by_role("button", name=button).click()
        expect(self.dialog).to_have_count(0)

    def toast(self, text: str | re.Pattern[str]) -> Locator:
        """A notification that says this."""
        return self.page.locator(".Toastify__toast").filter(has_text=text)

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of Lab's."""
        self.page.evaluate(
            "([name, given]) => void window.jupyterapp.commands.execute(name, given)", [name, arguments or {}]
        )

    # -- notebooks --------------------------------------------------------------------------------------------------

    def notebook(self, *cells: str, kernel: str = "ijfs-python3", name: str = "") -> Notebook:
        """Write a notebook and open it; returns once its kernel is ready."""
        path = f"{name or f'study-{next(self._numbers)}'}.ipynb"
        (self.server.root / path).write_text(json.dumps(document(cells, kernel)))
        self.page.evaluate("() => window.jupyterapp.serviceManager.kernelspecs.refreshSpecs()")
        return self.open(path)

    def open(self, path: str) -> Notebook:
        """Open a notebook; returns once its kernel is ready."""
        self.command("docmanager:open", {"path": path})
        opened = self.opened(path)
        opened.is_ready()
        return opened

    def opened(self, path: str) -> Notebook:
        """A notebook that is open."""
        tab = self.page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab").filter(has_text=path.rsplit("/", 1)[-1])
        ident = tab.get_attribute("data-id")
        return Notebook(self, self.page.locator(f"#{ident}"), path)

    def opened_beside(self, notebook: Notebook) -> Notebook:
        """The notebook that was opened beside this one."""
        tabs = self.page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab").filter(has_text=".ipynb")
        expect(tabs).to_have_count(2)
        other = tabs.filter(has_not_text=notebook.path)
        found = self.opened(str(other.locator(".lm-TabBar-tabLabel").inner_text()))
        found.is_ready()
        return found

    def ijfs(self, *arguments: str) -> None:
        """Type an ijfs command in a terminal."""
        subprocess.run([sys.executable, "-m", "ijfs.cli", *arguments], check=True, capture_output=True, text=True)

    def save(self, message: str) -> str:
        """Save the notebook in front by the panel's button; the snapshot's id."""
        self.button("Save").click()
        self.answer("Save", message)
        row = self.row(message)
        expect(row).to_have_count(1)
        return str(row.get_attribute("data-snapshot"))

    def go_back(self, text: str) -> None:
        """Choose a snapshot and go back to it; nothing is asked."""
        self.row(text).click()
        self.panel.get_by_role("button", name=re.compile("^Go back here")).click()
        expect(self.toast(f"Back at “{text}”")).to_be_visible()

    def close_toasts(self) -> None:
        """Close what was said."""
        close = "() => document.querySelectorAll('.jp-Notification-Toast-Close').forEach(button => button.click())"
        self.page.evaluate(close)
        expect(self.toast("")).to_have_count(0)

    def clear(self) -> None:
        """Close what is open, unsaved, and end its kernels; no page may have met a fault."""
        for dialog in self.page.locator(".jp-Dialog").all():
            dialog.press("Escape")
        self.page.evaluate(
            """async () => {
                const { shell, serviceManager } = window.jupyterapp;
                for (const widget of Array.from(shell.widgets('main'))) {
                    if (widget.context) { widget.context.model.dirty = false; }
                    widget.dispose();
                }
                await serviceManager.sessions.shutdownAll();
            }"""
        )
        self.close_toasts()
        # Lab's own word of a kernel that ends while something is asked of it.
        faults = [fault for fault in self.faults if "Canceled future" not in fault]
        self.faults = []
        assert not faults, faults

    def close(self) -> None:
        """Leave the page."""
        self.page.context.close()


def document(cells: tuple[str, ...], kernel: str) -> dict[str, Any]:
    """A notebook with these code cells."""
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    return {
        "cells": [{**code, "id": f"cell-{index}", "source": source} for index, source in enumerate(cells)],
        "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
