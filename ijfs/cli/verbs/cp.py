"""`ijfs cp`."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ijfs.cli import text
from ijfs.cli.app import App, Verb, verb
from ijfs.cli.copying import pipe, source, target
from ijfs.cli.copying.source import Node
from ijfs.cli.copying.target import Copied
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import ANY, needless
from ijfs.cli.tree_totals import check_room, tree_of
from ijfs_engine import Repository
from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.live.client.files import ProgramFiles


class Spec(NamedTuple):
    """NAME:PATH, or a path of this machine (`name` is None)."""

    name: str | None
    path: str

    @classmethod
    def of(cls, word: str) -> Spec:
        """As docker reads it: what begins with `/` or `.` is a path here, whatever colons follow."""
        name, colon, path = word.partition(":")
        if colon and name and not word.startswith(("/", ".")):
            return cls(name, path)
        return cls(None, word)


class CpVerb(Verb):
    """`cp -r`, as the fingers know it: directories are copied anyway, and -r names a repository elsewhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without each -r behind which there is no repository."""
        pairs = zip(args, [*args[1:], ""], strict=False)
        return super().parse_args(ctx, [word for word, after in pairs if word != "-r" or Repository.is_at(after)])


@verb("cp", kind=CpVerb)
@needless("-a", "--archive")
@needless("-R", "--recursive")
@click.argument("paths", metavar="SOURCE... DEST", nargs=-1, required=True, type=ANY)
def cp(app: App, paths: tuple[str, ...]) -> Answer | None:
    """Copy files and directories out of a program or a snapshot, or into a live program.

    \b
    ijfs cp lab:out.csv .              what the live program `lab` wrote, as it is now
    ijfs cp lab~1:out.csv old.csv      the same of a snapshot
    ijfs cp lab:results - | tar -x     a directory as a tar archive, a file as its bytes
    ijfs cp data.csv lab:              into the live program's working directory

    A path is the program's own: from its working directory, or absolute. NAME is a program if there is one of that
    name, live or ended, else a snapshot (`lab~0` is the last snapshot of a live `lab`). Of an ended program and of a
    snapshot only what the program wrote can be copied. A copy belongs to who owns the directory; links stay links.
    """
    if len(paths) < 2:
        ctx = click.get_current_context()
        raise click.MissingParameter(ctx=ctx, param_hint="'DEST'", param_type="argument")
    destination = paths[-1]
    into, froms = Spec.of(destination), [Spec.of(word) for word in paths[:-1]]
    inside = [spec for spec in froms if spec.name is not None]
    if into.name is None and len(inside) != len(froms):
        raise click.UsageError("one side has to be NAME:PATH, with the name of a program or a snapshot")
    if into.name is not None and inside:
        raise click.UsageError(
            "from one program into another there are two steps: `ijfs cp A:PATH .`, then `ijfs cp FILE B:`"
        )
    if into.path == "-" and into.name is None:
        _to_pipe(app, froms)
        return None
    _refuse_one_name_twice(froms)
    done = Copied()
    if into.name is not None:
        _inwards(app, froms, into, done)
    else:
        _outwards(app, froms, Path(into.path), done)
    data = {"files": done.files, "bytes": done.bytes, "left_out": done.left_out, "destination": destination}
    return Answer(data, lambda out: _show(out, done, destination))


def _refuse_one_name_twice(froms: list[Spec]) -> None:
    """Two sources that would become one file: the second would replace the first."""
    seen: dict[str, Spec] = {}
    for spec in froms:
        own_name = os.path.basename(os.path.normpath(spec.path)) if spec.path not in ("", "-") else ""
        if own_name in ("", ".", "..") or spec.path.endswith("/."):
            continue  # the contents of a directory go beside what is there
        first = seen.setdefault(own_name, spec)
        if first is not spec:
            raise click.UsageError(
                f"{_word(first)} and {_word(spec)} would both become `{text.printable(own_name)}`: "
                "nothing was copied; copy them one by one, each to a name of its own"
            )


def _word(spec: Spec) -> str:
    return text.printable(spec.path if spec.name is None else f"{spec.name}:{spec.path}")


def _show(out: Printer, done: Copied, destination: str) -> None:
    out.line(f"copied {text.count(done.files, 'file')}, {text.size(done.bytes)}, to ", (destination, "bold"))
    if done.left_out:
        out.line(
            (f"left out {text.count(done.left_out, 'socket, pipe or device', 'sockets, pipes and devices')}", "dim")
        )


def _to_pipe(app: App, froms: list[Spec]) -> None:
    if len(froms) != 1 or app.json:
        raise click.UsageError("`-` takes one file or directory, and its bytes are the output")
    name, path = froms[0]
    assert name is not None
    with source.opened(app, name, path) as found:
        pipe.write_out(found.node, os.fsdecode(found.name))


def _outwards(app: App, froms: list[Spec], destination: Path, done: Copied) -> None:
    place = _Place.of(destination, many=len(froms) > 1)
    with place:
        for name, path in froms:
            assert name is not None
            with source.opened(app, name, path) as found:
                _put(found.node, place, found.name, path, done)


def _inwards(app: App, froms: list[Spec], into: Spec, done: Copied) -> None:
    assert into.name is not None
    with _live_files(app, into.name) as files:
        where = files.inside(into.path)
        directory = _directory_inside(files, where)
        given_as_directory = into.path in ("", ".") or into.path.endswith("/")
        if directory is None and (len(froms) > 1 or given_as_directory):
            raise IjfsError(f"{into.name}:{where} is not a directory in the program")
        parent = directory if directory is not None else files.directory(os.path.dirname(where))
        place = _Place(parent, None if directory is not None else os.fsencode(os.path.basename(where)))
        with place:
            for _, path in froms:
                node: Node = pipe.StandardInput(b"") if path == "-" else source.of_this_machine(Path(path))
                with closing(node):
                    _put(node, place, node.entry.name, path, done)


def _live_files(app: App, name: str) -> ProgramFiles:
    """IjfsError where that is nothing that can be written into."""
    app.live_programs()
    from ijfs.live.client.api import is_running
    from ijfs.live.client.files import has_files

    if not is_running(app.repository_path, name):
        if has_files(app.repository_path, name):
            raise IjfsError(
                f"`{name}` has ended: files go into live programs only", hint="`ijfs restore` brings one back"
            )
        app.repository().resolve(name)
        raise IjfsError("a snapshot never changes", hint=f"`ijfs restore {name}`, copy into the live program, save it")
    return source.program(app, name)


def _directory_inside(files: ProgramFiles, where: str) -> int | None:
    try:
        return files.directory(where)
    except IjfsError:
        return None


class _Place:
    """An open directory to copy into, and the name that the copy gets there (None: its own)."""

    def __init__(self, fd: int, name: bytes | None) -> None:
        self.fd = fd
        self.name = name

    @classmethod
    def of(cls, destination: Path, *, many: bool) -> _Place:
        """As cp reads it: into a directory that is there, else under this name."""
        if destination.is_dir():
            return cls(os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), None)
        if many:
            raise IjfsError(f"{destination} is not a directory", hint="make it first: several files go into one")
        parent = destination.absolute().parent
        return cls(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), os.fsencode(destination.name))

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _put(node: Node, place: _Place, own_name: bytes, path: str, done: Copied) -> None:
    """Copy to the place. `DIR/.` and a nameless directory are what is in them."""
    if isinstance(node, source.StoredNode) and node.entry.kind == "d":
        check_room(node.reader, tree_of(node.entry), place.fd)
    if node.entry.kind not in "dfl":
        raise IjfsError(f"{path or '.'} is neither a file nor a directory")
    contents = (
        node.entry.kind == "d" and place.name is None and (path in (".", "") or path.endswith("/.") or not own_name)
    )
    if not contents:
        name = place.name or own_name
        if not name:
            raise IjfsError("what comes from standard input needs a name: `ijfs cp - NAME:PATH`")
        target.copy(node, place.fd, name, done)
        return
    for child in node.children():
        target.copy(child, place.fd, child.entry.name, done)


COMMANDS = {"cp": cp}
