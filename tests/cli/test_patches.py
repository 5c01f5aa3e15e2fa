"""Files as patches: text by lines, notebooks by their cells."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ijfs.cli import patches


def _notebook(*cells: tuple[str, str]) -> bytes:
    """A notebook of cells with a source and what it printed."""
    return json.dumps(
        {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"cell-{number}",
                    "metadata": {},
                    "execution_count": number,
                    "source": source.splitlines(keepends=True),
                    "outputs": [{"output_type": "stream", "name": "stdout", "text": printed}],
                }
                for number, (source, printed) in enumerate(cells)
            ],
            "metadata": {},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    ).encode()


OLD = _notebook(("x = 1\nprint(x)", "1\n"), ("y", ""))
NEW = _notebook(("x = 2\nprint(x)", "2\n"), ("y", ""), ("z = 3", ""))


def test_text_is_compared_line_by_line() -> None:
    assert patches.patch("a.txt", b"one\ntwo\n", b"one\n2").splitlines() == [
        "--- a/a.txt",
        "+++ b/a.txt",
        "@@ -1,2 +1,2 @@",
        " one",
        "-two",
        "+2",
        "\\ No newline at end of file",
    ]
    assert "/dev/null" in patches.patch("a.txt", None, b"new\n")
    assert patches.patch("a.bin", b"\0", b"text") == "binary or large files differ: a.bin\n"


def test_of_a_notebook_the_code_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nbdime", None)
    lines = patches.patch("n.ipynb", OLD, NEW).splitlines()
    assert [line for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))] == [
        "-x = 1",
        "+x = 2",
        "+# cell 3 (code)",
        "+z = 3",
    ]
    assert lines[-1].startswith("outputs differ")
    same = OLD.replace(b'"nbformat_minor": 5', b'"nbformat_minor": 4')
    assert "metadata" in patches.patch("n.ipynb", OLD, same)


def test_nbdime_is_asked_where_it_is_installed() -> None:
    pytest.importorskip("nbdime", reason="nbdime is not installed")
    text = patches.patch("n.ipynb", OLD, NEW)
    assert text.index("z = 3") < text.index("outputs")
    assert "modified /cells/0/source" in text


@pytest.mark.parametrize("broken", [b"{", b"[]", b'{"cells": 3}', b'{"cells": [{}]}', b"\xff"])
def test_what_is_no_notebook_is_compared_as_what_it_is(broken: bytes) -> None:
    notebook: Any = patches.patch("n.ipynb", OLD, broken)
    assert notebook.startswith(("--- a/n.ipynb", "binary"))
