"""What a check found: the record that doctor and every preflight return, and the one rule that judges them.

Called by `ijfs.live.doctor`, `ijfs.live.checks.blockers` and `ijfs.live.gpu.preflight`; printed by the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from ijfs_engine.errors import PreflightError

CheckOutcome = Literal["ok", "warn", "refuse", "unknown"]


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """One check: its name, its outcome, the evidence it stands on, and what to do about it.

    `unknown` is for what cannot be detected here: never a guess, and never a reason to refuse by itself.
    """

    check: str
    outcome: CheckOutcome
    evidence: str
    remedy: str = ""


def refused(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Those that stand in the way."""
    return [result for result in results if result.outcome == "refuse"]


def require(results: Sequence[CheckResult], *, force: bool = False) -> None:
    """Raise PreflightError (exit code 12) if any check refuses, unless the user forces it."""
    found = refused(results)
    if not found or force:
        return
    reasons = "; ".join(f"{result.check}: {result.evidence}" for result in found)
    remedies = "; ".join(result.remedy for result in found if result.remedy)
    raise PreflightError(f"refused before anything was touched: {reasons}", hint=remedies or None)
