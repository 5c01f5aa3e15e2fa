"""`ijfs diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import host_files, instances, live_diff, patches, text
from ijfs.cli.app import App, verb
from ijfs.cli.bounded import bounded
from ijfs.cli.output import Answer, Column, Printer, Span
from ijfs.cli.params import ANY, needless
from ijfs.history import comparison
from ijfs.history.comparison import FileChange, MemoryChange
from ijfs_engine import PAGE
from ijfs_engine.errors import PartialError

if TYPE_CHECKING:
    from ijfs.live.adopt.plan import Step
    from ijfs.live.client.adopt import Adoption
    from ijfs_engine import Reader, Repository, Snapshot

NO_FILES = frozenset({b"images", b"inodes", b"packages"})
"""What is at the top of a snapshot and no file of the program's."""
HOST = "host"
"""What names this machine's own files, unless a branch or tag is called so."""
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
@click.argument("old", metavar="[OLD]", type=ANY, required=False)
@click.argument("new", type=ANY, required=False)
@click.option("--files", "only", flag_value="files", help="Files only.")
@click.option("--memory", "only", flag_value="memory", help="Memory only.")
@click.option(
    "--variables", "variables", is_flag=True, help="A Python kernel's variables, too: of copies that it makes."
)
@click.option("-p", "--patch", "patched", is_flag=True, help="Files by their lines, too.")
@needless("--stat", "--name-only", "--name-status")
def diff(app: App, old: str | None, new: str | None, only: str | None, variables: bool, patched: bool) -> Answer:
    """Say what a program did since its last snapshot, or compare two snapshots.

    \b
    ijfs diff                     the only live program with the snapshot that it stands on
    ijfs diff lab                 the same of `lab`, if that is a program, live or ended
    ijfs diff lab~1 lab           two snapshots: files, and memory by pages at the same address
    ijfs diff lab host            what `lab` has written that this machine has not, as `ijfs adopt` would take it home

    Of a live program files are compared, its memory only after a save. NEW is `latest` unless it is given; where OLD is
    the latest, it is compared with its parent. -v lists the address ranges that differ.
    """
    repository = app.repository()
    old = old or instances.the_only(app)
    if HOST in (old, new) and not _is_snapshot(repository, HOST):
        return _with_host(repository, (new or "latest") if old == HOST else old, patched=patched)
    if new is None and live_diff.is_program(app, old):
        return _unsaved(app, old, only, variables=variables, patched=patched)
    return _two(app, repository, old, new, only, variables=variables, patched=patched)


def _unsaved(app: App, name: str, only: str | None, *, variables: bool, patched: bool) -> Answer:
    if only == "memory":
        raise click.UsageError(
            f"the memory of a program that is not saved cannot be compared: `ijfs save {name}`, then "
            f"`ijfs diff --memory {name}~1 {name}`"
        )
    found = live_diff.unsaved(app, name, patched=patched)
    if found.old is None:
        app.note(f"`{name}` stands on no snapshot: all that it wrote is new")
    else:
        app.note(f"compared with {text.short(found.old.id)}  {text.first_line(found.old.message)}")
    _warn_if_cut(app, found.files, cut=found.cut)
    data: dict[str, Any] = {
        "old": found.old.id.hex() if found.old else None,
        "new": name,
        "files": [_file_json(change, found.texts) for change in found.files],
        "memory": [],
    }
    if variables:
        data["variables"] = live_diff.variables(app, data["old"], name)

    def show(out: Printer) -> None:
        _report(out, found.files, [], found.texts, ranges=False, variables=data.get("variables"))
        if found.live:
            app.note(f"its memory is compared after a save: `ijfs save {name}`, then `ijfs diff {name}~1 {name}`")

    return Answer(data, show, PartialError.exit_code if found.cut else 0)


def _warn_if_cut(app: App, files: list[FileChange], *, cut: bool) -> None:
    if cut:
        app.warn(f"stopped after {len(files):,} files, at '{files[-1].path[-200:]}': there are more that differ")


def _two(
    app: App, repository: Repository, old: str, new: str | None, only: str | None, *, variables: bool, patched: bool
) -> Answer:
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
    texts: dict[str, str] = {}
    if only != "memory":
        found = comparison.files(reader, before.root, after.root, skip=NO_FILES)
        files, stopped = bounded(found, lambda change: change.path)
        texts = _patches(reader, before, after, files) if patched else {}
    if only != "files":
        memory = list(comparison.memories(reader, before, after, app.progress("diff")))
    _warn_if_cut(app, files, cut=stopped)
    data: dict[str, Any] = {
        "old": before.id.hex(),
        "new": after.id.hex(),
        "files": [_file_json(c, texts) for c in files],
        "memory": [_memory_json(change) for change in memory],
    }
    if variables:
        data["variables"] = live_diff.variables(app, before.id.hex(), after.id.hex())
    code = PartialError.exit_code if stopped else 0
    shown = data.get("variables")
    return Answer(data, lambda out: _report(out, files, memory, texts, ranges=app.verbose > 0, variables=shown), code)


def _with_host(repository: Repository, name: str, *, patched: bool) -> Answer:
    """What a branch has that this machine has not; the changes are those from the machine's files to the branch's."""
    from ijfs.live.client.adopt import Adoption

    adoption = Adoption(repository, name)
    found = adoption.compare(())
    texts = {step.path: _step_patch(adoption, step) for step in found.steps} if patched else {}
    files = [host_files.as_json(step) | _with_patch(texts.get(step.path)) for step in found.steps]

    def show(out: Printer) -> None:
        for step in found.steps:
            host_files.line(out, step)
            _lines(out, texts.get(step.path))
        if not found.steps:
            out.line(("nothing differs", "dim"))
        if found.elsewhere:
            out.line((f"{host_files.elsewhere(found)}; `ijfs adopt --dry-run {name} /` lists them", "dim"))

    return Answer({"old": HOST, "new": name, "files": files, "memory": []}, show)


def _step_patch(adoption: Adoption, step: Step) -> str | None:
    """None for what is no file on either side."""
    kinds = [entry.kind for entry in (adoption.on_host(step), step.file.entry if step.file else None) if entry]
    if set(kinds) != {"f"}:
        return None
    sizes = [step.old_size or 0, step.new_size or 0]
    old, new = adoption.contents(step) if max(sizes) <= patches.largest(host_files.shown(step.path)) else (b"\0", b"\0")
    return patches.patch(host_files.shown(step.path).lstrip("/"), old, new)


def _patches(reader: Reader, before: Snapshot, after: Snapshot, files: list[FileChange]) -> dict[str, str]:
    found = {}
    for change in files:
        sides = [patches.stored(reader, snapshot.root, change.path) for snapshot in (before, after)]
        if any(side is not None for side in sides):
            found[change.path] = patches.patch(change.path, *sides)
    return found


def _is_snapshot(repository: Repository, name: str) -> bool:
    return name in repository.refs.branches() or name in repository.refs.tags()


def _file_json(change: FileChange, texts: dict[str, str]) -> dict[str, Any]:
    sizes = {"old_size": change.old_size, "new_size": change.new_size}
    return {"path": change.path, "change": change.change, **sizes, **_with_patch(texts.get(change.path))}


def _with_patch(patch: str | None) -> dict[str, str]:
    return {"patch": patch} if patch is not None else {}


def _lines(out: Printer, patch: str | None) -> None:
    for line in (patch or "").splitlines():
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        out.line("  ", (line, style))


def _memory_json(change: MemoryChange) -> dict[str, Any]:
    names = ("process", "old_pages", "new_pages", "same", "changed", "added", "removed")
    runs = [{"address": address, "pages": pages} for address, pages in change.runs]
    return {**{name: getattr(change, name) for name in names}, "page_size": PAGE, "runs": runs}


def _report(
    out: Printer,
    files: list[FileChange],
    memory: list[MemoryChange],
    texts: dict[str, str],
    *,
    ranges: bool,
    variables: list[dict[str, Any]] | None,
) -> None:
    for change in files:
        glyph, style = host_files.MARKS[change.change]
        sizes = host_files.sizes_of(change.old_size, change.new_size)
        out.line((f"{glyph} ", style), (text.file_name(change.path), style), (sizes, "dim"))
        _lines(out, texts.get(change.path))
    for variable in variables or ():
        _variable(out, variable)
    if (files or variables) and memory:
        out.line()
    if memory:
        out.table(MEMORY, (_row(change) for change in memory))
    if ranges:
        for process in memory:
            out.line((f"{process.process}:", "bold"))
            for address, pages in process.runs:
                out.line(f"  {address:#014x}  ", text.size(pages * PAGE))
    if not files and not variables and all(c.changed == c.added == c.removed == 0 for c in memory):
        out.line(("nothing differs", "dim"))


def _variable(out: Printer, variable: dict[str, Any]) -> None:
    """One that differs, or of which nobody knows it (`?`)."""
    glyph, style = host_files.MARKS.get(variable["change"], ("?", "dim"))
    sides = [_kind(side) for side in (variable["old"], variable["new"]) if side is not None]
    out.line(
        (f"{glyph} ", style),
        ("variable ", "dim"),
        (variable["name"], style),
        (f"  {' → '.join(dict.fromkeys(sides))}", "dim"),
    )


def _kind(side: dict[str, Any]) -> str:
    shape = f" {'×'.join(map(str, side['shape']))}" if side["shape"] else ""
    return f"{side['type']}{shape}"


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
