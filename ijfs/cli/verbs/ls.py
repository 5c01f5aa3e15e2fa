"""`ijfs ls`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.bounded import bounded
from ijfs.cli.copying import source
from ijfs.cli.output import Answer, Column, Printer, Span
from ijfs.cli.params import ANY, needless
from ijfs_engine.errors import PartialError

if TYPE_CHECKING:
    from ijfs_engine import Entry

TYPES = {"f": "file", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket", "c": "char", "b": "block"}
STYLES = {"d": "bold blue", "l": "cyan", "p": "yellow", "s": "magenta", "c": "yellow", "b": "yellow"}
LONG = [Column("MODE"), Column("OWNER"), Column("SIZE", right=True), Column("MODIFIED"), Column("NAME")]


@verb("ls")
@click.argument("snapshot", metavar="SNAPSHOT|NAME", type=ANY)
@click.argument("path", required=False)
@click.option("-l", "--long", is_flag=True, help="Modes, owners, sizes and times too.")
@click.option("-R", "--recursive", is_flag=True, help="Everything below.")
@click.option(
    "--now", is_flag=True, help="The files of the program NAME as they are now, also if they were never saved."
)
@needless("-a", "--all")
def ls(app: App, snapshot: str, path: str | None, long: bool, recursive: bool, now: bool) -> Answer:
    """List what SNAPSHOT holds at PATH (also written SNAPSHOT:PATH; default: its top).

    `images` has the memory as CRIU's files, `files` what the program wrote. PATH may also be as the program calls it:
    `results`, `/root/results`. Where there is no snapshot of that name, it is the program NAME, live or ended, whose
    working directory is listed.
    """
    spec, where = source.split(snapshot, path)
    with source.looked_up(app, spec, where, now=now) as found:
        entries, stopped = bounded(_listed(found.node, where, recursive=recursive), lambda one: one[0])
    if stopped:
        last = entries[-1][0][-200:]
        app.warn(f"stopped after {len(entries):,} entries, at '{last}': name a directory to see the rest")
    data = {**found.json, "entries": [entry_json(p, e) for p, e in entries]}
    code = PartialError.exit_code if stopped else 0
    return Answer(data, lambda out: (_long if long else _names)(out, entries), code)


def _listed(node: source.Node, where: str, *, recursive: bool) -> Iterator[tuple[str, Entry]]:
    if node.entry.kind != "d":
        yield where, node.entry
        return
    yield from walk(node, recursive=recursive)


def walk(top: source.Node, *, recursive: bool = True) -> Iterator[tuple[str, Entry]]:
    """Entries below a directory with their paths, in the order of names, directories before what is in them."""
    todo = [("", top.children())]
    opened: list[source.Node] = []
    while todo:
        prefix, children = todo[-1]
        child = next(children, None)
        if child is None:
            todo.pop()
            if opened:
                opened.pop().close()
            continue
        path = f"{prefix}{decoded(child.entry.name)}"
        yield path, child.entry
        if recursive and child.entry.kind == "d":
            todo.append((f"{path}/", child.children()))
            opened.append(child)
        else:
            child.close()


def decoded(name: bytes) -> str:
    """A file name as text; what is not UTF-8 survives as surrogates and is written back as it was."""
    return os.fsdecode(name)


def entry_json(path: str, entry: Entry) -> dict[str, Any]:
    """One file as JSON has it."""
    data: dict[str, Any] = {
        "path": path,
        "type": TYPES[entry.kind],
        "mode": f"{entry.mode & 0o7777:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
    }
    return {**data, "target": decoded(entry.target)} if entry.kind == "l" else data


def _name(path: str, entry: Entry) -> list[Span]:
    shown: list[Span] = [(text.file_name(path) + ("/" if entry.kind == "d" else ""), STYLES.get(entry.kind, ""))]
    return [*shown, f" -> {text.file_name(decoded(entry.target))}"] if entry.kind == "l" else shown


def _names(out: Printer, found: list[tuple[str, Entry]]) -> None:
    for path, entry in found:
        out.line(*_name(path, entry))


def _long(out: Printer, found: list[tuple[str, Entry]]) -> None:
    from ijfs_engine import TYPE_BITS

    out.table(
        LONG,
        (
            [
                stat.filemode(TYPE_BITS[e.kind] | (e.mode & 0o7777)),
                f"{e.uid}:{e.gid}",
                text.size(e.size) if e.kind == "f" else "",
                text.moment(e.mtime_ns)[:16],
                _name(path, e),
            ]
            for path, e in found
        ),
    )


COMMANDS = {"ls": ls}
