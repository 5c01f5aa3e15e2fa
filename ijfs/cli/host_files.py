"""What a branch has that the machine has not, as verbs show it. Called by `ijfs adopt` and `ijfs diff`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ijfs.cli import text
from ijfs.cli.output import Printer

if TYPE_CHECKING:
    from ijfs.live.adopt.plan import Step
    from ijfs.live.client.adopt import Comparison

MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def shown(path: bytes) -> str:
    """A path as text."""
    return os.fsdecode(path)


def as_json(step: Step) -> dict[str, Any]:
    """The object that stands for one step in a verb's JSON."""
    return {
        "path": shown(step.path),
        "change": step.change,
        "old_size": step.old_size,
        "new_size": step.new_size,
        "conflict": step.conflict or None,
    }


def line(out: Printer, step: Step) -> None:
    """One line about a step."""
    glyph, style = MARKS[step.change]
    sizes = sizes_of(step.old_size, step.new_size)
    conflict = (f"  {step.conflict}", "red") if step.conflict else ""
    out.line((f"{glyph} ", style), (text.file_name(shown(step.path)), style), (sizes, "dim"), conflict)


def sizes_of(old: int | None, new: int | None) -> str:
    """The size, or the two where they differ; nothing where none is known."""
    if old is None and new is None:
        return ""
    if old is not None and new is not None and old != new:
        return f"  {text.size(old)} → {text.size(new)}"
    return f"  {text.size(new if new is not None else old or 0)}"


def elsewhere(found: Comparison) -> str:
    """How much there is outside of what was asked for, and where."""
    tops = sorted({shown(step.path).rpartition("/")[0] or "/" for step in found.elsewhere})
    return f"{text.count(len(found.elsewhere), 'more path')} in {', '.join(tops[:3])}{', …' if tops[3:] else ''}"
