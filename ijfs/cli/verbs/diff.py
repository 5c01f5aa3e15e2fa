"""`ijfs diff`."""

from __future__ import annotations

from typing import Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.bounded import bounded
from ijfs.cli.output import Answer, Column, Printer, Span
from ijfs.cli.params import SNAPSHOT
from ijfs.sdk import comparison
from ijfs.sdk.comparison import FileChange, MemoryChange
from ijfs_engine import PAGE
from ijfs_engine.errors import PartialError

MARKS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
MEMORY = [
    Column("PROCESS", style="bold"),
    Column("PAGES", right=True),
    Column("SAME", right=True),
    Column("CHANGED", right=True),
    Column("NEW", right=True),
    Column("GONE", right=True),
    Column("DIFFERS BY", right=True),
]


@verb("diff")
@click.argument("old", type=SNAPSHOT)
@click.argument("new", type=SNAPSHOT, required=False)
@click.option("--files", "only", flag_value="files", help="Files only.")
@click.option("--memory", "only", flag_value="memory", help="Memory only.")
def diff(app: App, old: str, new: str | None, only: str | None) -> Answer:
    """Compare two snapshots: files added, removed and changed; memory, by pages at the same address.

    NEW is `latest` unless it is given; where OLD is the latest, it is compared with its parent.

    -v lists the address ranges that differ.
    """
    repository = app.repository()
    reader = repository.reader()
    before, after = (repository.snapshot(repository.resolve(spec)) for spec in (old, new or "latest"))
    if new is None and before.id == after.id and (parents := repository.parents(after.id)):
        before = repository.snapshot(parents[0])
    if new is None:
        what = "its parent" if before.id != repository.resolve(old) else "`latest`"
        other = before if what == "its parent" else after
        app.note(f"compared with {what}: {text.short(other.id)}  {text.first_line(other.message)}")
    files: list[FileChange] = []
    stopped = False
    memory: list[MemoryChange] = []
    if only != "memory":
        found = comparison.files(reader, before.root, after.root, skip=frozenset({b"images"}))
        files, stopped = bounded(found, lambda change: change.path)
    if only != "files":
        memory = list(comparison.memories(reader, before, after, app.progress("diff")))
    if stopped:
        app.warn(f"stopped after {len(files):,} files, at '{files[-1].path[-200:]}': there are more that differ")
    data = {
        "old": before.id.hex(),
        "new": after.id.hex(),
        "files": [{"path": c.path, "change": c.change, "old_size": c.old_size, "new_size": c.new_size} for c in files],
        "memory": [_memory_json(change) for change in memory],
    }
    code = PartialError.exit_code if stopped else 0
    return Answer(data, lambda out: _report(out, files, memory, ranges=app.verbose > 0), code)


def _memory_json(change: MemoryChange) -> dict[str, Any]:
    names = ("process", "old_pages", "new_pages", "same", "changed", "added", "removed")
    runs = [{"address": address, "pages": pages} for address, pages in change.runs]
    return {**{name: getattr(change, name) for name in names}, "page_size": PAGE, "runs": runs}


def _report(out: Printer, files: list[FileChange], memory: list[MemoryChange], *, ranges: bool) -> None:
    for change in files:
        glyph, style = MARKS[change.change]
        out.line((f"{glyph} ", style), (change.path, style), (_sizes(change), "dim"))
    if files and memory:
        out.line()
    if memory:
        out.table(MEMORY, (_row(change) for change in memory))
    if ranges:
        for process in memory:
            out.line((f"{process.process}:", "bold"))
            for address, pages in process.runs:
                out.line(f"  {address:#014x}  ", text.size(pages * PAGE))
    if not files and all(c.changed == c.added == c.removed == 0 for c in memory):
        out.line(("nothing differs", "dim"))


def _sizes(change: FileChange) -> str:
    if change.change == "changed" and change.old_size != change.new_size:
        return f"  {text.size(change.old_size or 0)} → {text.size(change.new_size or 0)}"
    return f"  {text.size(change.new_size if change.new_size is not None else change.old_size or 0)}"


def _row(change: MemoryChange) -> list[Span]:
    differing = change.changed + change.added
    return [
        change.process,
        f"{change.new_pages:,}",
        f"{change.same:,}",
        (f"{change.changed:,}", "yellow" if change.changed else ""),
        (f"{change.added:,}", "green" if change.added else ""),
        (f"{change.removed:,}", "red" if change.removed else ""),
        text.size(differing * PAGE),
    ]


COMMANDS = {"diff": diff}
