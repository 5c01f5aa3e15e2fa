"""The whole demo, as `make demo` runs it. What it claims it checks itself; here it is checked that it ends well."""

from __future__ import annotations

import importlib
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


def test_a_demo_whose_cells_could_not_run_is_refused_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("ijfs.cli.verbs.demo")
    monkeypatch.setattr(module, "_IMPORTED", ("ipykernel", "a_package_that_nobody_has"))
    with pytest.raises(PreflightError, match="a_package_that_nobody_has cannot be imported") as caught:
        module._preflight()
    assert "ijfs[demo]" in (caught.value.hint or "")
