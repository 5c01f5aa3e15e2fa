"""The picture of docs/jupyter.md: `make screenshots` makes it; nothing else runs this."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lab import Lab, Notebook

TARGET = os.environ.get("IJFS_SCREENSHOTS", "")

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.criu,
    pytest.mark.skipif(not TARGET, reason="`make screenshots` takes it"),
]

CELLS = (
    "import random\ndata = [random.gauss(10, 3) for _ in range(100_000)]",
    "def fit(data, rate):\n    return sum(data) / len(data) * (1 - rate)",
    "model = fit(data, rate=0.1)\nprint(f'{model:.2f}')",
    "open('model.txt', 'w').write(str(model))",
)


def test_picture_of_the_panel(lab: Lab) -> None:
    lab.page.set_viewport_size({"width": 1000, "height": 640})
    notebook = lab.notebook(*CELLS, name="ocean")
    grow(lab, notebook)
    lab.row("trained with rate 0.1").click()
    lab.page.mouse.move(500, 500)
    lab.page.screenshot(path=Path(TARGET, "jupyter-panel.png"))


def grow(lab: Lab, notebook: Notebook) -> None:
    """A day's work: two lines of snapshots from one beginning, a tag, a fork."""
    for cell in (0, 1):
        notebook.run(cell)
    lab.save("data loaded")
    lab.button("Tag").click()
    lab.answer("OK", "clean")
    notebook.run(2)
    lab.save("trained with rate 0.1")
    notebook.type(2, "model = fit(data, rate=0.01)\nprint(f'{model:.2f}')")
    notebook.run(2)
    lab.save("trained with rate 0.01")
    lab.go_back("data loaded")
    notebook.type(2, "model = fit(data, rate=0.5)\nprint(f'{model:.2f}')")
    notebook.run(2)
    notebook.run(3)
    lab.save("half the rate, model written")
    lab.close_toasts()
