"""`ijfs import`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import MESSAGE, REF, SNAPSHOT

if TYPE_CHECKING:
    from ijfs_engine import Repository, Snapshot, SnapshotWriter

    class _AsWhat(TypedDict, total=False):
        """What `import_directory` is told of a container's checkpoint."""

        add: Callable[[SnapshotWriter, Path], None]
        meta: dict[str, Any]


DEFAULT_BRANCH = "main"


@verb("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--parent", type=SNAPSHOT, help="The snapshot this one follows: what is the same is not read twice.")
@click.option("-m", "--message", type=MESSAGE, default="", help="What it is.")
@click.option("--branch", type=REF, help="The branch that moves to it (see below).")
def import_(app: App, source: Path, parent: str | None, message: str, branch: str | None) -> Answer:
    """Store SOURCE, a directory, as a snapshot. CRIU's images go to `images/`, anything else to `files/`.

    SOURCE may also be an archive that `podman container checkpoint --export` wrote, or the directory that it holds:
    its images go to `images/`, the rest to `container/`; `ijfs export --for podman` gives it back.

    The snapshot follows the tip of its branch unless --parent says otherwise. The branch is `main`, or the one that
    stands at the parent; a parent that has moved on gets a new branch, named after the source.
    """
    from ijfs_engine import import_directory

    repository = app.repository()
    base, name = _place(repository, source, parent, branch)
    with _directory(source) as (directory, as_what):
        snapshot = import_directory(
            repository,
            directory,
            parents=[base] if base else [],
            message=message or text.message(f"import {source.resolve().name}"),
            branch=name,
            on_damage=lambda error: app.warn(
                f"{text.short(base or b'')}, its parent, is damaged ({error}): stored without it"
            ),
            progress=app.progress("import"),
            **as_what,
        )
    data = {
        "snapshot": snapshot.id.hex(),
        "parent": base.hex() if base else None,
        "branch": name,
        "not_kept": snapshot.meta.get("not_kept", {}),
    }
    return Answer(data, lambda out: _show(out, snapshot, name))


@contextlib.contextmanager
def _directory(source: Path) -> Iterator[tuple[Path, _AsWhat]]:
    """The source as a directory, and how that is stored where it is more than a directory."""
    from ijfs.cli.containers import reading

    with contextlib.ExitStack() as stack:
        directory = source if source.is_dir() else stack.enter_context(reading.unpacked(source))
        if reading.is_checkpoint(directory):
            yield directory, {"add": reading.add, "meta": reading.meta(directory)}
        else:
            yield directory, {}


def _show(out: Printer, snapshot: Snapshot, branch: str) -> None:
    subject = text.first_line(snapshot.message)
    out.line((text.short(snapshot.id), "yellow"), "  ", subject, "  ", (f"[{branch}]", "bold green"))
    if lost := snapshot.meta.get("not_kept"):
        out.line(f"not kept: the chattr flags ({lost['chattr']}) of {text.count(lost['files'], 'file')}")


def _place(repository: Repository, source: Path, parent: str | None, branch: str | None) -> tuple[bytes | None, str]:
    """The parent and the branch of an import; no branch ever leaves a snapshot behind."""
    branches = repository.refs.branches()
    if parent is None:
        name = branch or DEFAULT_BRANCH
        return branches.get(name), name
    base = repository.resolve(parent)
    if branch is not None:
        _check_free(branches, branch, base)
        return base, branch
    standing = [parent] if parent in branches else sorted(n for n, at in branches.items() if at == base)
    return base, standing[0] if standing else _new_name(branches, source.resolve().name or "import")


def _check_free(branches: dict[str, bytes], name: str, base: bytes) -> None:
    if branches.get(name, base) == base:
        return
    from ijfs_engine.errors import IjfsError

    raise IjfsError(
        f"branch '{name}' is at {text.short(branches[name])}, which the new snapshot would not follow",
        hint=f"choose another name, or move it first: `ijfs branch -f {name} {text.short(base)}`",
    )


def _new_name(branches: dict[str, bytes], wish: str) -> str:
    wish = "".join(c if c.isalnum() or c in "-_." else "-" for c in wish).strip("-.") or "import"
    names = (wish, *(f"{wish}-{i}" for i in range(2, len(branches) + 3)))
    return next(name for name in names if name not in branches)


COMMANDS = {"import": import_}
