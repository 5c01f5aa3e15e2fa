"""`ijfs cat`."""

from __future__ import annotations

import base64
import os

import click

from ijfs.cli.app import App, verb
from ijfs.cli.copying import pipe, source
from ijfs.cli.output import Answer
from ijfs.cli.params import ANY
from ijfs_engine.errors import IjfsError


@verb("cat")
@click.argument("snapshot", metavar="SNAPSHOT|NAME", type=ANY)
@click.argument("path", required=False)
@click.option("--now", is_flag=True, help="The file of the program NAME as it is now, also if it was never saved.")
def cat(app: App, snapshot: str, path: str | None, now: bool) -> Answer | None:
    """Print the file at PATH of SNAPSHOT (also written SNAPSHOT:PATH), byte for byte.

    PATH is one of those that `ijfs ls` shows, or as the program calls it: `out.csv`, `/root/out.csv`. Where there is no
    snapshot of that name, it is the program NAME, live or ended, that is looked into.
    """
    spec, where = source.split(snapshot, path)
    if not where:
        raise click.UsageError("PATH is missing: `ijfs cat SNAPSHOT PATH`")
    with source.looked_up(app, spec, where, now=now) as found:
        node = found.node
        if node.entry.kind != "f":
            link = node.entry.kind == "l"
            hint = f"it points to {os.fsdecode(node.entry.target)}" if link else f"`ijfs ls {spec} {where}` shows it"
            raise IjfsError(f"{where} is not a file in {spec}", hint=hint)
        if app.json:
            return Answer({**found.json, **_content(node)})
        pipe.write_out(node, where)
    return None


def _content(node: source.Node) -> dict[str, object]:
    data = b"".join(pipe.whole(node))
    try:
        return {"size": len(data), "encoding": "utf-8", "content": data.decode()}
    except UnicodeDecodeError:
        return {"size": len(data), "encoding": "base64", "content": base64.b64encode(data).decode()}


COMMANDS = {"cat": cat}
