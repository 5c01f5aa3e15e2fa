"""The code of docs/sdk.md does what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from live.live_env import LiveEnv

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```(python|output)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.root
@pytest.mark.criu
def test_the_page_of_the_sdk_is_true(live_env: LiveEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(live_env.work)
    blocks = BLOCK.findall((ROOT / "docs/sdk.md").read_text())
    assert len(blocks) > 10
    names: dict[str, Any] = {}
    printed = ""
    for kind, text in blocks:
        if kind == "output":
            assert printed.strip() == text.strip()
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "docs/sdk.md", "exec"), names)
        printed = out.getvalue()
