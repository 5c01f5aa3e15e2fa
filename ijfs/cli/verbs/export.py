"""`ijfs export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.copying import source
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import SNAPSHOT
from ijfs.cli.tree_totals import check_room, tree_of

if TYPE_CHECKING:
    from ijfs_engine import Entry, Exported, Reader, Snapshot


@verb("export")
@click.argument("snapshot", type=SNAPSHOT)
@click.argument("target", metavar="DIRECTORY", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "reader_of",
    type=click.Choice(["podman", "oci", "runc"]),
    help="What reads it: an archive for podman, an OCI image of one, runc's directory of images (see below).",
)
@click.option(
    "--unprivileged",
    is_flag=True,
    help="Even as root, write what an ordinary user could: all of it yours, without setuid bits and devices.",
)
def export(app: App, snapshot: str, target: Path, reader_of: str | None, unprivileged: bool) -> Answer:
    """Write SNAPSHOT to DIRECTORY, byte for byte, with modes, times, links and attributes; as root with owners, too.

    SNAPSHOT:PATH makes DIRECTORY what PATH was: `ijfs export main:images DIR` is a set of images for `criu restore`.
    DIRECTORY must be empty or absent. A file has its name only when it is whole, also if the export ends early.

    A container's checkpoint that `ijfs import` took in goes back with --for podman to a file (.tar, .tar.gz, .tar.zst)
    for `podman container restore --import`, with --for oci to an image for `podman load`. --for runc writes CRIU's
    images to DIRECTORY, for `runc restore --image-path`.
    """
    repository = app.repository()
    spec, where = source.split(snapshot, "images" if reader_of == "runc" and ":" not in snapshot else None)
    record = repository.snapshot(repository.resolve(spec))
    reader = repository.reader()
    if reader_of in ("podman", "oci"):
        return _archive(reader, record, where, target, reader_of)
    return _tree(app, reader, record, spec, where, target, unprivileged)


def _archive(reader: Reader, record: Snapshot, where: str, file: Path, reader_of: str) -> Answer:
    """The checkpoint of a container, as one file."""
    from ijfs.cli.containers import writing
    from ijfs_engine.errors import IjfsError

    if where.strip("/"):
        raise IjfsError(f"--for {reader_of} takes a whole snapshot, not a path in it", hint="leave out the path")
    if file.exists():
        raise IjfsError(f"{file} exists", hint="name a new file")
    size = (writing.write_oci if reader_of == "oci" else writing.write_archive)(reader, record, file)
    data = {"snapshot": record.id.hex(), "file": str(file.absolute()), "bytes": size}
    return Answer(data, lambda out: out.line(f"wrote {text.size(size)} to ", (str(file), "bold")))


def _tree(
    app: App, reader: Reader, record: Snapshot, spec: str, where: str, directory: Path, unprivileged: bool
) -> Answer:
    """A stored directory, as a directory."""
    from ijfs_engine import export_tree

    top = _directory(reader, record, where, spec)
    tree = record.root if top is None else tree_of(top)
    _check_empty(directory)
    directory.mkdir(parents=True, exist_ok=True)
    check_room(reader, tree, directory)
    done = export_tree(
        reader,
        tree,
        directory,
        top=top,
        privileged=False if unprivileged else None,
        progress=app.progress("export"),
    )
    data = {
        "snapshot": record.id.hex(),
        "directory": str(directory.absolute()),
        "files": done.files,
        "bytes": done.bytes,
        "left_out": done.left_out,
    }
    return Answer(data, lambda out: _show(out, done, directory))


def _show(out: Printer, done: Exported, directory: Path) -> None:
    out.line(f"wrote {text.count(done.files, 'file')}, {text.size(done.bytes)} to ", (str(directory), "bold"))
    if done.left_out:
        out.line(f"left out {text.count(done.left_out, 'device node')}")


def _directory(reader: Reader, record: Snapshot, where: str, spec: str) -> Entry | None:
    """The entry of a directory; None for the snapshot's top, which has none."""
    if not where.strip("/"):
        return None
    entry = source.find(reader, record, where, spec)
    if entry.kind != "d":
        from ijfs_engine.errors import IjfsError

        raise IjfsError(
            f"{where} is not a directory", hint="`ijfs cp SNAPSHOT:PATH .` copies a file, `ijfs cat` prints it"
        )
    return entry


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        from ijfs_engine.errors import IjfsError

        raise IjfsError(f"{directory} is not an empty directory", hint="name a new directory, or an empty one")


COMMANDS = {"export": export}
