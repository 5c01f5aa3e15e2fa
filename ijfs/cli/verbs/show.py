"""`ijfs show`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text, views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import SNAPSHOT
from ijfs.cli.tree_totals import totals, tree_of
from ijfs.cli.verbs import ls
from ijfs.fs.plain import plain
from ijfs.history.snapshots import History

if TYPE_CHECKING:
    from ijfs_engine import Reader, Repository, Snapshot

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
    live = _runs_from(app, record)
    remotes = {one.name: _is_at(repository, one.name, record) for one in repository.remotes.all()}
    far = next(name for name, is_there in remotes.items() if is_there) if not repository.is_here(record.id) else None
    history = History.of(repository) if far is None else History.there(repository.remotes.known(far))
    usage = repository.du([record.id]).total if far is None else None
    logical, stored = (usage.logical, usage.stored) if usage is not None else (record.size or 0, 0)
    parts = list(_parts(repository.reader(), record.root))
    data = {
        **history.json(record),
        "root": record.root.hex(),
        "children": [s.id.hex() for s in history.children(record.id)],
        "contents": [{"name": p.name, "files": p.files, "size": p.size} for p in parts],
        "remotes": remotes,
        "usage": {"logical": logical, "stored": stored, "added": record.added},
        "meta": plain(record.meta),
    }

    def print_it(out: Printer) -> None:
        _head(out, history, record)
        _program(out, record.meta)
        for p in parts:
            _field(out, p.name, f"{text.count(p.files, 'file')}, {text.size(p.size)}")
        if far is None:
            new = f", of which storing it took {text.size(record.added)}" if record.added is not None else ""
            _field(out, "on disk", text.size(stored) + new)
        for remote, is_there in remotes.items():
            _field(out, "at", remote) if is_there else _field(out, "not at", remote, (" (`ijfs push` sends it)", "dim"))
        for name in live:
            _field(out, "live", (name, "bold green"), ("  runs on from here; no snapshot has what it did since", "dim"))
        _next_steps(out, history, record, f"{far}/" if far is not None else "")
        if app.verbose:
            out.line()
            for line in json.dumps(plain(record.meta), indent=2, sort_keys=True, ensure_ascii=False).splitlines():
                out.line((line, "dim"))

    return Answer(data, print_it)


def _is_at(repository: Repository, remote: str, record: Snapshot) -> bool:
    """Whether a remote has it, as it was last looked at."""
    return repository.remotes.known(remote).listing(record.id) is not None


def _runs_from(app: App, record: Snapshot) -> list[str]:
    """Live programs that were saved to or restored from it last."""
    from ijfs.live.client.api import list_instances

    found = list_instances(app.repository_path)
    return sorted(info.name for info in found if info.status == "running" and info.snapshot == record.id.hex())


def _field(out: Printer, name: str, *spans: Any) -> None:
    out.line((f"{name:<{max(10, len(name) + 1)}}", "dim"), *spans)


def _head(out: Printer, history: History, record: Snapshot) -> None:
    out.line("snapshot  ", (record.id.hex(), "yellow"), " ", *views.spans(history.labels, record.id))
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
        argv = spec.get("argv")
        command = " ".join(map(str, argv)) if isinstance(argv, list) else ""
        if spec.get("kind") == "kernel":  # its command line is Jupyter's
            command = f"kernel {spec.get('kernel_name', '')}"
        _field(out, "program", (str(spec.get("name", "")), "bold green"), f"  {command}")
        _field(out, "directory", str(spec.get("cwd", "")))
    frozen_s = meta.get("frozen_s")
    if isinstance(frozen_s, float) and 0 <= frozen_s < math.inf:
        _field(out, "frozen", text.seconds(frozen_s))
    versions = meta.get("environment")
    if isinstance(versions, dict):
        known = [f"{label} {versions[key]}" for key, label in MACHINE.items() if versions.get(key)]
        _field(out, "made with", ", ".join(known))


def _next_steps(out: Printer, history: History, record: Snapshot, before: str) -> None:
    """What a person may want to do with it, each with a name that works; `before`: the remote that has it."""
    name = before + next(iter(history.labels.at(record.id)), text.short(record.id))
    steps = [f"ijfs ls {name}"]
    if isinstance(record.meta.get("spec"), dict):
        steps.insert(0, f"ijfs restore {name}")
        steps.insert(1, f"ijfs restore {name} --replace")
    if any(parent in history.snapshots for parent in history.parents[record.id]):
        steps.append(f"ijfs diff {name}~1 {name}")
    out.line()
    for step in steps:
        out.line((f"  {step}", "dim"))


def _parts(reader: Reader, root: bytes) -> Iterator[ShownPart]:
    for entry in reader.tree(root).entries:
        name = ls.decoded(entry.name)
        if entry.kind == "d":
            below = totals(reader, tree_of(entry))
            yield ShownPart(name, below.files, below.size)
        else:
            yield ShownPart(name, *((1, entry.size) if entry.kind == "f" else (0, 0)))


COMMANDS = {"show": show}
