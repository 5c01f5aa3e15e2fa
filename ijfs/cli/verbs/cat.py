"""`ijfs cat`."""

from __future__ import annotations

import base64
import os
import sys
from typing import TYPE_CHECKING

import click

from ijfs.cli import views
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, writing_out
from ijfs.cli.params import SNAPSHOT

if TYPE_CHECKING:
    from ijfs_engine import StoredFile

BLOCK = 1 << 20


@verb("cat")
@click.argument("snapshot", type=SNAPSHOT)
@click.argument("path", required=False)
def cat(app: App, snapshot: str, path: str | None) -> Answer | None:
    """Print the file at PATH of SNAPSHOT (also written SNAPSHOT:PATH), byte for byte."""
    from ijfs_engine.errors import IjfsError

    repository = app.repository()
    spec, where = views.split_spec(snapshot, path)
    if not where:
        raise click.UsageError("PATH is missing: `ijfs cat SNAPSHOT PATH`")
    record = repository.snapshot(repository.resolve(spec))
    reader = repository.reader()
    entry = views.lookup(reader, record.root, where)
    if entry.kind != "f":
        hint = (
            f"it points to {os.fsdecode(entry.target)}" if entry.kind == "l" else f"`ijfs ls {spec} {where}` shows it"
        )
        raise IjfsError(f"{where} is not a file in {spec}", hint=hint)
    stored = reader.open(entry)
    if app.json:
        return Answer({"snapshot": record.id.hex(), "path": where, **_content(stored)})
    _copy(stored)
    return None


def _copy(stored: StoredFile) -> None:
    for offset in range(0, stored.size, BLOCK):
        data = stored.read(offset, min(BLOCK, stored.size - offset))
        with writing_out():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _content(stored: StoredFile) -> dict[str, object]:
    data = stored.read(0, stored.size)
    try:
        return {"size": stored.size, "encoding": "utf-8", "content": data.decode()}
    except UnicodeDecodeError:
        return {"size": stored.size, "encoding": "base64", "content": base64.b64encode(data).decode()}


COMMANDS = {"cat": cat}
