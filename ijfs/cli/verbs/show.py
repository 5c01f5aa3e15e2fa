"""`ijfs show`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import SNAPSHOT
from ijfs.cli.verbs import ls

if TYPE_CHECKING:
    from ijfs_engine import Reader, Snapshot

MACHINE = {"kernel": "Linux", "machine": "on", "criu": "CRIU", "python": "Python", "driver": "driver", "gpu": "GPU"}
"""What is shown of the versions in a snapshot's meta, and how it is called; -v prints the whole record."""


@dataclass(frozen=True)
class ShownPart:
    """One of the top entries of a snapshot: how many files, how many bytes."""

    name: str
    files: int
    size: int


@verb("show")
@click.argument("snapshot", type=SNAPSHOT, default="latest")
def show(app: App, snapshot: str) -> Answer:
    """Show all that is known of SNAPSHOT (default: latest). -v prints its whole record."""
    repository = app.repository()
    record = repository.snapshot(repository.resolve(snapshot))
    history = views.History.of(repository)
    usage = repository.du([record.id]).total
    parts = list(_parts(repository.reader(), record.root))
    data = {
        **history.json(record),
        "root": record.root.hex(),
        "children": [s.id.hex() for s in history.children(record.id)],
        "contents": [{"name": p.name, "files": p.files, "size": p.size} for p in parts],
        "usage": {"logical": usage.logical, "stored": usage.stored, "added": record.added},
        "meta": _plain(record.meta),
    }

    def print_it(out: Printer) -> None:
        _head(out, history, record)
        _program(out, record.meta)
        for p in parts:
            _field(out, p.name, f"{text.count(p.files, 'file')}, {text.size(p.size)}")
        new = f", of which storing it took {text.size(record.added)}" if record.added is not None else ""
        _field(out, "on disk", text.size(usage.stored) + new)
        if app.verbose:
            out.line()
            for line in json.dumps(_plain(record.meta), indent=2, sort_keys=True, ensure_ascii=False).splitlines():
                out.line((line, "dim"))

    return Answer(data, print_it)


def _field(out: Printer, name: str, *spans: Any) -> None:
    out.line((f"{name:<10}", "dim"), *spans)


def _head(out: Printer, history: views.History, record: Snapshot) -> None:
    out.line("snapshot  ", (record.id.hex(), "yellow"), " ", *history.labels.spans(record.id))
    for parent in history.parents[record.id]:
        message = text.first_line(history.snapshots[parent].message) if parent in history.snapshots else "(gone)"
        _field(out, "parent", (text.short(parent), "yellow"), "  ", message)
    _field(out, "created", text.moment(record.created_ns), (f"  ({text.ago(record.created_ns)})", "dim"))
    out.line()
    for line in (record.message.strip() or "(no message)").splitlines():
        out.line("    ", (line, "bold"))
    out.line()


def _program(out: Printer, meta: dict[str, Any]) -> None:
    spec = meta.get("spec")
    if isinstance(spec, dict):
        command = " ".join(map(str, spec.get("argv", ())))
        _field(out, "program", (str(spec.get("name", "")), "bold green"), f"  {command}")
        _field(out, "directory", str(spec.get("cwd", "")))
    if isinstance(meta.get("frozen_s"), float):
        _field(out, "frozen", text.seconds(meta["frozen_s"]))
    versions = meta.get("environment")
    if isinstance(versions, dict):
        known = [f"{label} {versions[key]}" for key, label in MACHINE.items() if versions.get(key)]
        _field(out, "made with", ", ".join(known))


def _parts(reader: Reader, root: bytes) -> Iterator[ShownPart]:
    for entry in reader.tree(root).entries:
        name = ls.decoded(entry.name)
        if entry.kind == "d":
            yield ShownPart(name, *_totals(reader, ls.tree_id(entry)))
        else:
            yield ShownPart(name, *((1, entry.size) if entry.kind == "f" else (0, 0)))


def _totals(reader: Reader, top: bytes) -> tuple[int, int]:
    """Files below a tree, and their bytes. Each tree is read once, however many paths lead to it."""
    totals: dict[bytes, tuple[int, int]] = {}
    known: dict[bytes, tuple[int, int, list[bytes]]] = {}
    stack = [top]
    while stack:
        tree = stack[-1]
        if tree not in totals and tree not in known:
            entries = reader.tree(tree).entries
            sizes = [entry.size for entry in entries if entry.kind == "f"]
            below = [ls.tree_id(entry) for entry in entries if entry.kind == "d"]
            known[tree] = (len(sizes), sum(sizes), below)
            stack += [child for child in below if child not in totals]
            continue
        stack.pop()
        if tree not in totals:
            files, size, below = known.pop(tree)
            parts = [totals[child] for child in below]
            totals[tree] = (files + sum(part[0] for part in parts), size + sum(part[1] for part in parts))
    return totals[top]


def _plain(meta: dict[str, Any]) -> dict[str, Any]:
    """Meta as JSON can hold it: bytes as hex."""
    plain = json.loads(json.dumps(meta, default=lambda v: v.hex() if isinstance(v, bytes) else str(v)))
    return dict(plain)


COMMANDS = {"show": show}
