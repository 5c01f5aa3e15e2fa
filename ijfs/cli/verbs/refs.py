"""`ijfs branch`, `ijfs tag`, `ijfs rm`: the names that keep snapshots, and what loses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from ijfs.cli import globs, text
from ijfs.cli.app import App, Verb, verb
from ijfs.cli.output import Answer, Column, Printer
from ijfs.cli.params import REF, SNAPSHOT, elsewhere, needless
from ijfs.history.snapshots import History

if TYPE_CHECKING:
    from ijfs.fs.mountpoint import OpenSnapshot
    from ijfs_engine import Repository, Snapshot

RefKind = Literal["branch", "tag", "snapshot"]
COLUMNS = [Column("NAME", style="bold green"), Column("SNAPSHOT", style="yellow"), Column("AGE", right=True)]


@verb("branch")
@click.argument("name", required=False, type=REF)
@click.argument("snapshot", required=False, type=SNAPSHOT)
@click.option("-d", "-D", "--delete", is_flag=True, help="Delete NAME; its snapshots stay until gc.")
@click.option("-f", "--force", is_flag=True, help="Move NAME if it exists.")
@needless("-l", "--list")
@needless("-a", "--all")
@elsewhere("-m", "-M", "--move", said="`ijfs branch NEW OLD`, then `ijfs branch -d OLD`; a live program keeps its name")
def branch(app: App, name: str | None, snapshot: str | None, delete: bool, force: bool) -> Answer:
    """List branches, or make branch NAME at SNAPSHOT (default: latest)."""
    return _refs(app, "branch", name, snapshot, delete=delete, force=force)


@verb("tag")
@click.argument("name", required=False, type=REF)
@click.argument("snapshot", required=False, type=SNAPSHOT)
@click.option("-d", "-D", "--delete", is_flag=True, help="Delete NAME; its snapshots stay until gc.")
@click.option("-f", "--force", is_flag=True, help="Move NAME if it exists.")
@needless("-l", "--list")
@needless("-a", "--all")
@elsewhere("-m", "--message", said="a tag has no text; `ijfs save -m TEXT` gives a snapshot one")
def tag(app: App, name: str | None, snapshot: str | None, delete: bool, force: bool) -> Answer:
    """List tags, or make tag NAME at SNAPSHOT (default: latest)."""
    return _refs(app, "tag", name, snapshot, delete=delete, force=force)


def _refs(
    app: App, kind: Literal["branch", "tag"], name: str | None, snapshot: str | None, *, delete: bool, force: bool
) -> Answer:
    repository = app.repository()
    if name is None:
        if delete or force:
            raise click.UsageError("NAME is missing")
        return _list(repository, kind)
    if delete:
        if snapshot is not None:
            raise click.UsageError(f"-d takes one NAME; `ijfs rm` takes several, and patterns such as '{name}*'")
        chosen = globs.expanded([name], lambda: _table(repository, kind))
        return _removed(repository, [(kind, each) for each in chosen], dry_run=False)
    if kind == "tag" and snapshot is None and not force:
        _check_not_meant(app, repository, name)
    return _make(repository, kind, name, snapshot or "latest", force=force)


def _check_not_meant(app: App, repository: Repository, name: str) -> None:
    """Refuse a tag at the latest snapshot by the name of a branch or program: most likely that was to be tagged."""
    from ijfs.live.client.api import is_running
    from ijfs_engine.errors import IjfsError

    if name in repository.refs.tags():
        return
    if name in repository.refs.branches():
        what = "branch"
    elif is_running(app.repository_path, name):
        what = "live program"
    else:
        return
    raise IjfsError(
        f"'{name}' is a {what}, and no name for a tag was given",
        hint=f"`ijfs tag NAME {name}` tags it; `ijfs tag {name} latest` gives the latest snapshot that name",
    )


def _table(repository: Repository, kind: RefKind) -> Mapping[str, bytes]:
    return repository.refs.branches() if kind == "branch" else repository.refs.tags()


def _list(repository: Repository, kind: Literal["branch", "tag"]) -> Answer:
    table = _table(repository, kind)
    snapshots = {s.id: s for s in repository.snapshots()}
    data = {"branches" if kind == "branch" else "tags": {name: at.hex() for name, at in sorted(table.items())}}

    def show(out: Printer) -> None:
        rows = [(n, text.short(at), snapshots.get(at)) for n, at in sorted(table.items(), key=_naturally)]
        if not rows:
            out.line((f"no {kind} yet", "dim"))
            return
        message = Column("MESSAGE", flex=True)
        out.table(
            [*COLUMNS, message],
            (
                [n, at, text.age(s.created_ns) if s else "", text.first_line(s.message) if s else ""]
                for n, at, s in rows
            ),
        )

    return Answer(data, show, names=[name for name, _ in sorted(table.items(), key=_naturally)])


def _naturally(row: tuple[str, bytes]) -> list[tuple[bool, int, str]]:
    return text.natural(row[0])


def _make(repository: Repository, kind: RefKind, name: str, spec: str, *, force: bool) -> Answer:
    target = _target(repository, spec)
    old = _table(repository, kind).get(name)
    if old is not None and old != target and not force:
        from ijfs_engine.errors import IjfsError

        raise IjfsError(f"{kind} '{name}' is at {text.short(old)} already", hint="-f moves it")
    if old is None and not force:
        _check_not_an_id(repository, kind, name)
    if kind == "branch":
        repository.refs.set_branch(name, target, expect=old)
    else:
        repository.refs.set_tag(name, target, expect=old)
    data = {"kind": kind, "name": name, "snapshot": target.hex(), "was": old.hex() if old else None}
    moved = f" (was at {text.short(old)})" if old and old != target else ""
    return Answer(
        data, lambda out: out.line(f"{kind} ", (name, "bold green"), " is at ", (text.short(target), "yellow"), moved)
    )


def _target(repository: Repository, spec: str) -> bytes:
    """The snapshot that is meant; one that was removed is listed again."""
    from ijfs_engine.errors import UnknownNameError

    try:
        return repository.resolve(spec)
    except UnknownNameError:
        removed = repository.removed(spec.lower())
        if len(removed) != 1:
            raise
    return repository.bring_back(removed[0]).id


def _check_not_an_id(repository: Repository, kind: RefKind, name: str) -> None:
    """Refuse a name that is the beginning of a snapshot's id, which it would hide: most likely it was meant as that."""
    from ijfs_engine.errors import AmbiguousNameError, IjfsError, UnknownNameError

    if len(name) < 4 or not set(name) <= set("0123456789abcdef"):
        return
    try:
        meant = text.short(repository.resolve(name))
    except UnknownNameError:
        return
    except AmbiguousNameError:
        meant = "several"
    raise IjfsError(
        f"'{name}' begins the id of a snapshot ({meant}), which a {kind} of that name would hide",
        hint=f"`ijfs {kind} NAME {name}` makes one there; -f makes '{name}' all the same",
    )


class RmVerb(Verb):
    """`rm -rf`, as the fingers know it: neither letter asks for anything here, and -r names a repository elsewhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without the r."""
        return super().parse_args(ctx, ["-f" if word in ("-rf", "-fr") else word for word in args])


@verb("rm", kind=RmVerb)
@click.argument("names", nargs=-1, required=True, type=SNAPSHOT)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would become unreachable.")
@needless("-f", "--force")
def rm(app: App, names: tuple[str, ...], dry_run: bool) -> Answer:
    """Remove branches, tags or snapshots, and say what nothing keeps any more.

    A NAME is taken as a branch or tag if there is one, else as a snapshot; `'agent-*'` is every branch and tag that it
    fits. Space comes back at `ijfs gc`; until then `ijfs branch NAME ID` brings back what was removed.
    """
    repository = app.repository()
    chosen = globs.expanded(names, lambda: _removable(repository))
    return _removed(repository, [(_kind(repository, name), name) for name in chosen], dry_run=dry_run)


def _removable(repository: Repository) -> list[str]:
    """What a pattern may mean: not the tags that keep bases, which `ijfs base rm` removes."""
    names = [*repository.refs.branches(), *repository.refs.tags()]
    return [name for name in names if not name.startswith("base@")]


def _kind(repository: Repository, name: str) -> RefKind:
    is_branch = name in repository.refs.branches()
    if is_branch and name in repository.refs.tags():
        from ijfs_engine.errors import AmbiguousNameError

        raise AmbiguousNameError(
            f"'{name}' is a branch and a tag", hint=f"`ijfs branch -d {name}` or `ijfs tag -d {name}` says which"
        )
    if is_branch:
        return "branch"
    return "tag" if name in repository.refs.tags() else "snapshot"


def _removed(repository: Repository, targets: list[tuple[RefKind, str]], *, dry_run: bool) -> Answer:
    _refuse_bases(targets)
    history = History.of(repository)
    at = {name: _at(repository, kind, name) for kind, name in targets}
    removed = {at[name] for kind, name in targets if kind == "snapshot"}
    moved = _moved(repository, targets, removed)
    if dry_run:
        kept = history.ancestors(_heads_without(repository, targets, moved))
    else:
        _remove(repository, targets, at)
        kept = History.of(repository).named()
    lost = history.named() - kept - removed
    held = lost & history.ancestors(pin.id for pin in repository.pins())
    from ijfs.fs.mountpoint import opened_in_mounts

    in_use = opened_in_mounts(repository.path, [ident.hex() for ident in sorted(removed | lost - held)])
    ways_back = [] if dry_run else [_way_back(history, kind, name, at[name]) for kind, name in targets]
    lost_ones = _Lost(history.snapshots, lost - held, held, in_use)
    return _report(targets, at, moved, lost_ones, ways_back, dry_run=dry_run)


def _moved(repository: Repository, targets: list[tuple[RefKind, str]], removed: set[bytes]) -> dict[str, bytes | None]:
    """Where the branches at removed snapshots go; None for those that go away with them."""
    heirs = repository.heirs(sorted(removed))
    return {name: heir for name, heir in sorted(heirs.items()) if ("branch", name) not in targets}


def _way_back(history: History, kind: RefKind, name: str, ident: bytes) -> str:
    """What undoes a removal, as long as gc has not run."""
    short = text.short(ident)
    if kind != "snapshot":
        return f"ijfs {kind} {name} {short}"
    heads = history.labels.branches.get(ident, ())
    return f"ijfs branch -f {heads[0]} {short}" if heads else f"ijfs branch NAME {short}"


def _refuse_bases(targets: list[tuple[RefKind, str]]) -> None:
    """A base's tags keep what snapshots stand on: they go with the base, which asks whether anything needs it."""
    found = [name for kind, name in targets if kind == "tag" and name.startswith("base@")]
    if found:
        from ijfs_engine.errors import IjfsError

        base = found[0].split("@")[1]
        raise IjfsError(f"the tag '{found[0]}' keeps the base `{base}`", hint=f"`ijfs base rm {base}` removes the base")


def _remove(repository: Repository, targets: list[tuple[RefKind, str]], at: Mapping[str, bytes]) -> None:
    removers: dict[RefKind, Callable[[str], Any]] = {
        "branch": repository.refs.delete_branch,
        "tag": repository.refs.delete_tag,
        "snapshot": lambda name: repository.remove(at[name]),
    }
    for kind, name in targets:
        removers[kind](name)


def _heads_without(
    repository: Repository, targets: list[tuple[RefKind, str]], moved: Mapping[str, bytes | None]
) -> list[bytes]:
    """Where branches and tags would stand."""
    branches = {name: at for name, at in repository.refs.branches().items() if ("branch", name) not in targets}
    heads = [at for at in {**branches, **moved}.values() if at is not None]
    return heads + [at for name, at in repository.refs.tags().items() if ("tag", name) not in targets]


def _at(repository: Repository, kind: RefKind, name: str) -> bytes:
    if kind == "snapshot":
        return repository.resolve(name)
    table = _table(repository, kind)
    if name not in table:
        from ijfs_engine.errors import UnknownNameError

        raise UnknownNameError(f"there is no {kind} '{name}'", hint=f"`ijfs {kind}` lists them")
    return table[name]


class _Lost(NamedTuple):
    """Snapshots that no name reaches any more: those that gc takes, and those that live programs hold."""

    snapshots: Mapping[bytes, Snapshot]
    unreachable: set[bytes]
    held: set[bytes]
    in_use: Sequence[OpenSnapshot]
    """What is being read of those that gc takes, in mounts."""

    def listed(self, ids: set[bytes]) -> list[Snapshot]:
        """Newest first."""
        return [s for s in self.snapshots.values() if s.id in ids]


def _report(
    targets: list[tuple[RefKind, str]],
    at: Mapping[str, bytes],
    moved: Mapping[str, bytes | None],
    lost: _Lost,
    ways_back: list[str],
    *,
    dry_run: bool,
) -> Answer:
    data = {
        "dry_run": dry_run,
        "removed": [{"kind": kind, "name": name, "snapshot": at[name].hex()} for kind, name in targets],
        "moved": [{"name": name, "snapshot": to.hex() if to is not None else None} for name, to in moved.items()],
        "unreachable": [s.id.hex() for s in lost.listed(lost.unreachable)],
        "held": [s.id.hex() for s in lost.listed(lost.held)],
        "open": [{"snapshot": one.snapshot, "mountpoint": str(one.mountpoint), "by": one.by} for one in lost.in_use],
        "undo": ways_back,
    }

    def show(out: Printer) -> None:
        for kind, name in targets:
            done = "would remove" if dry_run else "removed"
            said = lost.snapshots.get(at[name]) if kind == "snapshot" else None
            message = f"  {text.first_line(said.message)}" if said is not None else ""
            out.line(f"{done} {kind} ", (name, "bold"), (f" (at {text.short(at[name])})", "dim"), message)
        for name, to in moved.items():
            _show_moved(out, name, to, dry_run=dry_run)
        for ids, what in ((lost.unreachable, "nothing keeps"), (lost.held, "only what is live keeps")):
            for s in lost.listed(ids):
                out.line(f"  {what} ", (text.short(s.id), "yellow"), "  ", text.first_line(s.message))
        for one in lost.in_use:
            short = one.snapshot[: text.SHORT_ID]
            out.line((short, "yellow"), f" is open in the mount {one.mountpoint}, by {one.by}")
        if lost.in_use:
            out.line(("what they have not read by the next `ijfs gc` they get as `Stale file handle`", "dim"))
        for (kind, name), way in zip(targets, ways_back, strict=False):
            if kind == "snapshot" and at[name] not in lost.snapshots:
                continue  # its record is damaged: nothing brings that back
            until = "until `ijfs gc`, " if kind == "snapshot" or at[name] in lost.unreachable else ""
            out.line((f"{until}`{way}` brings it back", "dim"))
        if lost.unreachable and not dry_run:
            out.line(("`ijfs log` lists what nothing keeps until `ijfs gc` frees it", "dim"))

    return Answer(data, show)


def _show_moved(out: Printer, name: str, to: bytes | None, *, dry_run: bool) -> None:
    if to is not None:
        words = (" would be at ", "") if dry_run else (" is at ", " now")
        out.line("  branch ", (name, "bold green"), words[0], (text.short(to), "yellow"), words[1])
        return
    goes = "would go with it" if dry_run else "went with it"
    out.line("  branch ", (name, "bold"), f" {goes}: no snapshot before it is known")


COMMANDS = {"branch": branch, "tag": tag, "rm": rm}
