"""The whole demo, as `make demo` runs it. What it claims it checks itself; here it is checked that it ends well."""

from __future__ import annotations

import ast
import importlib
import io
from pathlib import Path

import pytest
from calls import Ijfs
from json_page import check

from ijfs_engine.errors import PreflightError

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.criu]


def test_the_demo_holds_what_it_claims_and_leaves_nothing(run_ijfs: Ijfs, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    result = run_ijfs("demo", "--json", env={"TMPDIR": str(tmp_path / "tmp")})
    assert result.err == ""
    check(result.json, "demo")
    assert [claim for claim in result.json["claims"] if not claim["held"]] == []
    assert result.code == 0
    assert len(result.json["claims"]) >= 16
    assert list((tmp_path / "tmp").iterdir()) == []


def test_short_of_verbose_ten_claims_are_told_and_whatever_does_not_hold() -> None:
    from ijfs.cli.demo.stage import Claim, Narrator
    from ijfs.cli.output import Printer

    stream = io.StringIO()
    narrator = Narrator(Printer(stream), brief=True)
    narrator.chapter(1, "a chapter")
    narrator.command("ijfs", "init")
    narrator.cell("lab", "x = 1")
    narrator.text("output")
    narrator.verdict(Claim("told", True, "seen"))
    narrator.verdict(Claim("minor", True, "", minor=True))
    narrator.verdict(Claim("minor and wrong", False, "", minor=True))
    assert [line.split("  (")[0].strip() for line in stream.getvalue().splitlines()] == [
        "ok told",
        "FAILED minor and wrong",
    ]
    source = Path(importlib.import_module("ijfs.cli.demo.story").__file__ or "").read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    claims = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "claim"]
    assert sum(not any(word.arg == "minor" for word in call.keywords) for call in claims) == 10


def test_a_demo_whose_cells_could_not_run_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("ijfs.cli.verbs.demo")
    monkeypatch.setattr(module, "_IMPORTED", ("ipykernel", "a_package_that_nobody_has"))
    with pytest.raises(PreflightError, match="a_package_that_nobody_has cannot be imported") as caught:
        module._preflight()
    assert "ijfs[demo]" in (caught.value.hint or "")
