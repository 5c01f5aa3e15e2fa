"""`ijfs remote`, `push`, `fetch`, `pull`, `clone`: a tree in an object store that many machines share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import passphrases, text
from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import ANY, REF
from ijfs.cli.verbs import remote_upkeep

if TYPE_CHECKING:
    from ijfs_engine import FetchReport, PullReport, PushReport, Repository

DEFAULT = remote_upkeep.DEFAULT
COLUMNS = [
    Column("NAME", style="bold green"),
    Column("URL", flex=True),
    Column("SNAPSHOTS", right=True),
    Column("BRANCHES", right=True),
]


@click.group("remote", cls=VerbGroup, no_args_is_help=False)
def remote() -> None:
    """Name object stores that hold a tree of snapshots, which many machines share."""


@verb("remote add")
@click.argument("name")
@click.argument("url")
def add(app: App, name: str, url: str) -> Answer:
    """Call the place at URL (s3://BUCKET/PREFIX, gs://…, az://…, file:///DIRECTORY) NAME. Nothing is sent yet."""
    made = app.repository().remotes.add(name, url)

    def show(out: Printer) -> None:
        out.line("remote ", (made.name, "bold green"), f" is {made.url}")
        if out.terminal:
            out.line((f"  next: `ijfs push {made.name}`, or `ijfs fetch {made.name}` if there is a tree", "dim"))

    return Answer({"name": made.name, "url": made.url}, show)


@verb("remote remove")
@click.argument("name")
def remove(app: App, name: str) -> Answer:
    """Forget the remote NAME. What is in its store stays there."""
    gone = app.repository().remotes.remove(name)
    return Answer(
        {"name": gone.name, "url": gone.url},
        lambda out: out.line("forgot remote ", (gone.name, "bold green"), f"; {gone.url} is as it was"),
    )


@verb("remote list")
def list_(app: App) -> Answer:
    """List remotes, and what was there at the last `ijfs fetch`."""
    remotes = app.repository().remotes
    found = [(one, remotes.known(one.name)) for one in remotes.all()]
    data = [
        {
            "name": one.name,
            "url": one.url,
            "snapshots": len(tree.view.listings),
            "refs": {name: ident.hex() for name, ident in sorted(tree.refs.items())},
        }
        for one, tree in found
    ]

    def show(out: Printer) -> None:
        if not found:
            out.line(("no remote yet: `ijfs remote add NAME URL`", "dim"))
            return
        rows = [
            [one.name, one.url, str(len(tree.view.listings)), str(sum(n.startswith("branch/") for n in tree.refs))]
            for one, tree in found
        ]
        out.table(COLUMNS, rows)

    return Answer({"remotes": data}, show)


for _command in (add, remove, list_, remote_upkeep.gc, remote_upkeep.fsck, remote_upkeep.du):
    remote.add_command(_command)


@verb("push")
@click.argument("words", nargs=-1, type=ANY, metavar="[REMOTE] [NAME]...")
def push(app: App, words: tuple[str, ...]) -> Answer:
    """Send branches and tags (all, or each NAME) with all they reach to REMOTE (default: origin).

    Only what is not there yet is sent. A push that broke off goes on where it stopped. A branch that went on at both
    ends keeps both: yours goes there as NAME@HOST.
    """
    repository = app.repository()
    name, names = _which(repository, words)
    from ijfs.live.uploads.reach import to_push

    refs, also = to_push(repository, names)
    report = repository.remotes.push(name, refs, also=also, progress=app.progress(f"push to {name}"))
    data = {
        "remote": name,
        "snapshots": [ident.hex() for ident in report.snapshots],
        "refs": {ref: ident.hex() for ref, ident in report.refs.items()},
        "apart": report.apart,
        "packs": report.packs,
        "sent": report.sent,
        "requests": report.requests,
    }
    return Answer(data, lambda out: _show_push(out, name, report))


def _show_push(out: Printer, name: str, report: PushReport) -> None:
    if not report.snapshots:
        out.line((name, "bold green"), " has all of it")
    else:
        out.line(
            f"sent {text.count(len(report.snapshots), 'snapshot')} to ",
            (name, "bold green"),
            f": {text.size(report.sent)} in {text.count(report.packs, 'pack')}",
        )
    for ref, moved in report.apart.items():
        out.line(
            ("  apart: ", "yellow"), f"{ref} went on there as well; yours is {moved} (`ijfs pull {name}` brings theirs)"
        )


@verb("fetch")
@click.argument("name", required=False, metavar="[REMOTE]")
def fetch(app: App, name: str | None) -> Answer:
    """Look what is new at REMOTE (default: origin): names and records come, bytes when they are read.

    What is there is then called REMOTE/BRANCH, REMOTE/TAG or REMOTE/ID in every verb that takes a snapshot.
    """
    repository = app.repository()
    chosen, _ = _which(repository, (name,) if name else ())
    report = repository.remotes.fetch(chosen)
    return Answer(_fetched(chosen, report), lambda out: _show_fetch(out, chosen, report))


def _fetched(name: str, report: FetchReport) -> dict[str, object]:
    return {
        "remote": name,
        "snapshots": report.snapshots,
        "new": report.new,
        "refs": {
            ref: {"was": was.hex() if was else None, "is": now.hex() if now else None}
            for ref, (was, now) in report.refs.items()
        },
        "requests": report.requests,
        "received": report.received,
    }


def _show_fetch(out: Printer, name: str, report: FetchReport) -> None:
    new = f"{text.count(report.new, 'new snapshot')} of {report.snapshots}" if report.new else "nothing new"
    out.line((name, "bold green"), f": {new}")
    for ref, (was, now) in report.refs.items():
        kind, _, short = ref.partition("/")
        where = text.short(now) if now else "gone"
        before = f" (was at {text.short(was)})" if was else ""
        out.line(f"  {kind} ", (f"{name}/{short}", "bold green"), " ", (where, "yellow"), before)


@verb("pull")
@click.argument("words", nargs=-1, type=REF, metavar="[REMOTE] [NAME]...")
def pull(app: App, words: tuple[str, ...]) -> Answer:
    """Copy branches and tags (all, or each NAME) of REMOTE (default: origin) here, whole.

    They need the remote no longer then. A branch that went on at both ends stays, and theirs comes as NAME@REMOTE.
    """
    repository = app.repository()
    name, names = _which(repository, words)
    report = repository.remotes.pull(name, names, progress=app.progress(f"pull from {name}"))
    data = {
        "remote": name,
        "snapshots": [ident.hex() for ident in report.snapshots],
        "refs": {ref: ident.hex() for ref, ident in report.refs.items()},
        "apart": report.apart,
        "stored": report.stored,
    }
    return Answer(data, lambda out: _show_pull(out, name, report))


def _show_pull(out: Printer, name: str, report: PullReport) -> None:
    if not report.snapshots and not report.refs:
        out.line("all that ", (name, "bold green"), " has is here")
    for ref, ident in report.refs.items():
        kind, _, short = ref.partition("/")
        out.line(f"{kind} ", (short, "bold green"), " is at ", (text.short(ident), "yellow"))
    if report.snapshots:
        out.line((f"  {text.count(len(report.snapshots), 'snapshot')}, {text.size(report.stored)} stored", "dim"))
    for ref, moved in report.apart.items():
        out.line(("  apart: ", "yellow"), f"{ref} went on here as well; theirs is {moved}")


@verb("clone")
@click.argument("url")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def clone(app: App, url: str, directory: Path | None) -> Answer:
    """Make a repository in DIRECTORY (default: the one that -r, IJFS_REPO or XDG name) with the remote origin at URL.

    Names and records come; bytes when something is restored or read, or with `ijfs pull`.
    """
    from ijfs_engine import Repository

    path = (directory or app.repository_path).absolute()
    passphrases.ask_at_terminal(app)
    was_there = path.exists()
    with Repository.init_like(path, url) as repository:
        try:
            repository.remotes.add(DEFAULT, url)
            report = repository.remotes.fetch(DEFAULT)
        except BaseException:
            _undo(path, keep=was_there)
            raise

    def show(out: Printer) -> None:
        out.line("made a repository in ", (str(path), "bold"))
        _show_fetch(out, DEFAULT, report)
        if out.terminal:
            out.line((f"  next: `ijfs log {DEFAULT}`, `ijfs restore {DEFAULT}/NAME`", "dim"))

    return Answer({"path": str(path), **_fetched(DEFAULT, report)}, show)


def _undo(path: Path, *, keep: bool) -> None:
    """Take away the repository that was just made; with `keep`, but for its directory, which was there."""
    import shutil

    for below in path.iterdir():
        if below.is_dir():
            shutil.rmtree(below)
        else:
            below.unlink()
    if not keep:
        path.rmdir()


def _which(repository: Repository, words: Sequence[str]) -> tuple[str, list[str]]:
    """The remote that is meant, and the names behind it. UnknownNameError."""
    if words and words[0] in {one.name for one in repository.remotes.all()}:
        return words[0], list(words[1:])
    return remote_upkeep.chosen(repository, None), list(words)


COMMANDS: Mapping[str, click.Command] = {
    "remote": remote, "push": push, "fetch": fetch, "pull": pull, "clone": clone,
}  # fmt: skip
