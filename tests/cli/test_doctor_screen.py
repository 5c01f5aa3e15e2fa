"""What doctor says: causes, and not what follows from them; lines that fit; what to type next. No program runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from ijfs.cli.output import Printer
from ijfs.cli.verbs import doctor as verb
from ijfs.live import doctor
from ijfs.live.checks import privilege
from ijfs.live.checks.result import CheckResult
from ijfs.live.machine import place

CAUSE = CheckResult(
    check="capabilities",
    outcome="refuse",
    evidence="user 65534 is not root: sandboxes, CRIU and mounts need it",
    remedy="`sudo -E ijfs …`, or a root shell; `ijfs log`, `export` and the like work as it is",
)
FINE = CheckResult(check="kernel", outcome="ok", evidence="Linux 6.18, x86_64")
DOUBT = CheckResult(check="FUSE", outcome="warn", evidence="/dev/fuse is missing", remedy="`modprobe fuse`")


def screen(verdicts: list[CheckResult], monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    """What a terminal of that width shows."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    verb.report(Printer(stream), verdicts)
    stream.seek(0)
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", stream.read()).splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_lines_go_on_where_they_began(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = screen([FINE, CAUSE], monkeypatch, width)
    assert max(map(len, lines)) <= width
    begins = {len(line) - len(line.lstrip()) for line in lines[2:-3]}
    assert begins <= {17, 19}, lines
    assert lines[-2:] == ["1 check would stop a save", "  nothing can be saved here until that is mended"]


def test_a_machine_that_is_fit_is_told_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "`ijfs demo`" in screen([FINE], monkeypatch, 80)[-1]
    assert screen([FINE, DOUBT], monkeypatch, 80)[-2] == "nothing is refused; 1 warning above"


def test_who_is_not_root_hears_of_that_and_of_nothing_that_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(privilege, "missing", lambda: list(privilege.CAPABILITIES))
    monkeypatch.setattr(place.privilege, "objection", lambda: (CAUSE.evidence, CAUSE.remedy))
    monkeypatch.setattr(place.os, "geteuid", lambda: 65534)
    verdicts = doctor.machine(tmp_path / "repository")
    wrong = [v.check for v in verdicts if v.outcome in ("refuse", "unknown")]
    assert wrong in (["capabilities"], ["capabilities", "CRIU"]), "CRIU may really be missing"
    assert not {"overlay", "criu check", "userfaultfd", "trial"} & {v.check for v in verdicts}


@pytest.mark.parametrize(
    ("version", "outcome"),
    [
        ("Linux version 5.15.167.4-microsoft-standard-WSL2", "ok"),
        ("Linux version 4.4.0-19041-Microsoft", "refuse"),
        ("Linux version 6.1.0-13-amd64 (debian)", None),
    ],
)
def test_wsl_is_named(monkeypatch: pytest.MonkeyPatch, version: str, outcome: str | None) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: version)
    monkeypatch.setattr(place, "container", lambda: "")
    assert [v.outcome for v in place.surroundings()] == ([outcome] if outcome else [])


def test_a_container_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_CONTAINERS", {"/proc/self/status": "podman"})
    assert "(podman)" in [v.evidence for v in place.surroundings()][-1]
    monkeypatch.setattr(place, "_CONTAINERS", {})
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert place.container() == "Kubernetes"


def test_a_repository_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    (verdict,) = doctor._repository(tmp_path)
    assert (verdict.outcome, "`ijfs init` makes one" in verdict.evidence) == ("ok", True)
