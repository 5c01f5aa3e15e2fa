"""Live instances as verbs show them: the JSON object, the table, names that are free. Called by the live verbs."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ijfs.cli import text
from ijfs.cli.output import Column, Printer, Span
from ijfs.history.snapshots import program_of

if TYPE_CHECKING:
    from ijfs.cli.app import App
    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.model.records import Limits
    from ijfs.live.process.fork_request import ForkServerInfo
    from ijfs_engine import Snapshot

T = TypeVar("T")

COLUMNS = [
    Column("NAME", style="bold green"),
    Column("STATUS", optional=True),
    Column("UP", right=True),
    Column("SNAPSHOT", style="yellow", drop=2),
    Column("PORTS", optional=True),
    Column("LIMITS", optional=True, drop=1),
    Column("PID", right=True, drop=3),
    Column("PROGRAM", flex=True),
]


def instance_json(info: InstanceInfo) -> dict[str, Any]:
    """The object that stands for a live instance in every verb's JSON."""
    import msgspec

    return dict(msgspec.to_builtins(info))


def table(out: Printer, infos: Iterable[InstanceInfo], damaged: Iterable[str] = ()) -> None:
    """What `ijfs ps` prints; `damaged`: names of which no record can be read."""
    rows = [_row(info, "→" if out.unicode else "->") for info in infos]
    lost: list[list[Span]] = [[(name, "dim"), ("damaged record", "red"), "", "", "", "", "", ""] for name in damaged]
    out.table(COLUMNS, rows + lost)


def _row(info: InstanceInfo, arrow: str) -> list[Span]:
    live = info.status == "running"
    return [
        (info.name, "bold green" if live else "dim"),
        status(info),
        (text.age(info.created_ns), "dim"),
        (info.snapshot or "")[: text.SHORT_ID],
        ", ".join(ports(info, arrow)) if live else "",
        limits_of(info.limits) if live else "",
        str(info.pid or ""),
        program(info),
    ]


def ports(info: InstanceInfo, arrow: str = "→") -> list[str]:
    """Which port here leads to which inside, of those that were asked for: a kernel's own go to its front end."""
    return [f"{port.host}{arrow}{port.inside}" for port in info.relay if port.name.startswith("tcp")]


def spare(out: Printer, waiting: ForkServerInfo | None) -> None:
    """One line about the process that waits for the next start, where one does."""
    if waiting is not None:
        memory = f", {text.size(waiting.memory)}" if waiting.memory is not None else ""
        about = f"pid {waiting.pid}, {text.age(waiting.since_ns)}{memory}"
        out.line((f"a spare waits for the next start or restore ({about}); `ijfs stop --all` ends it", "dim"))


def status(info: InstanceInfo) -> Span:
    """What is not as usual: how it ended, what is still on its way, or nothing of a program that just runs."""
    if info.status == "running":
        parts = [f"{info.memory:.0%} in"] if info.memory < 1 else []
        parts += ["parked"] if info.parked else []
        parts += ["saving"] if info.saving else []
        parts += [] if info.keeper_running else ["no keeper"]
        return (", ".join(parts), "yellow")
    if info.parked_on_disk:
        return ("parked on disk", "yellow")
    from ijfs.live.model.records import STOPPED

    stopped = info.note.endswith(STOPPED)
    how = info.note if info.exit_status is None else f"exited {info.exit_status}"
    saving = ", saving" if info.saving else ""
    style = "red" if info.exit_status and not stopped else "dim"
    return (f"{STOPPED if stopped else how or info.status}{saving}", style)


def program(info: InstanceInfo) -> str:
    """The command line as it was given; a kernel's is of no interest to anyone."""
    if info.kind == "kernel":
        kernel = info.connection.get("kernel_name") if info.connection else ""
        return f"kernel {kernel}".rstrip()
    return shlex.join(info.argv)


def limits_of(limits: Limits) -> str:
    """Those that somebody asked for, as they are typed: `4 GB, 2 cpus`."""
    from ijfs.live.model.records import typed_size

    parts = [typed_size(limits.memory)] if limits.memory else []
    parts += [f"{limits.cpus:g} cpu{'s' * (limits.cpus != 1)}"] if limits.cpus else []
    parts += [f"{limits.pids} pids"] if limits.pids else []
    parts += [f"{typed_size(limits.io)}/s"] if limits.io else []
    return ", ".join(parts)


def by_name(infos: Iterable[InstanceInfo]) -> list[InstanceInfo]:
    """Live ones first, agent-2 before agent-10."""
    return sorted(infos, key=lambda info: (info.status == "exited", text.natural(info.name)))


def the_only(app: App) -> str:
    """The program that is meant where nobody says which; a usage error where that is not plain."""
    import click

    from ijfs.live.client.api import list_instances

    live = [info.name for info in by_name(list_instances(app.repository_path)) if info.status != "exited"]
    if len(live) != 1:
        which = f"say which: {text.listing(live)}" if live else "nothing is live: `ijfs ps -a` shows what has ended"
        raise click.UsageError(which)
    return live[0]


def named(app: App, name: str | None, wish: str, start: Callable[[str], T], *, replace: bool = False) -> T:
    """What `start` makes of the name that was asked for, or of a free one after the wish; who interrupts it hears what
    runs, or with `replace` that it may be another by now."""
    from ijfs.live.client import instances

    def interruptible(chosen: str) -> T:
        with app.interruptible(lambda: replaced(chosen)) if replace else coming_up(app, chosen):
            return start(chosen)

    return instances.named(app.repository_path, name, wish, interruptible)


def replaced(name: str) -> str:
    """What is said to one who interrupts going back in place: it goes on, and nobody here hears how it ends."""
    return f"`{name}` is still being replaced by the snapshot, or was: `ijfs ps` shows it"


@contextlib.contextmanager
def coming_up(app: App, *names: str) -> Iterator[None]:
    """Around the start of these programs: one who interrupts it hears which of them run. What is not up by then is
    ended by its keeper."""
    with app.interruptible(lambda: _what_runs(app, names)):
        yield


def _what_runs(app: App, names: Sequence[str]) -> str:
    from ijfs.live.client import api as client
    from ijfs.live.model.paths import InstancePaths
    from ijfs.live.process.keeper_lock import is_kept

    if not names:
        return "`ijfs ps` shows what has come up"
    running = [name for name in names if client.is_running(app.repository_path, name)]
    if running:
        one = len(running) == 1
        listed = ", ".join(f"`{name}`" for name in running)
        return f"{listed} {'runs' if one else 'run'}: `ijfs stop {' '.join(running)}` ends {'it' if one else 'them'}"
    ending = any(is_kept(InstancePaths.of(app.repository_path, name)) for name in names)
    listed = " and ".join(f"`{name}`" for name in names)
    return f"{listed} ends as soon as it has come up" if ending else f"{listed} did not come up"


def require_program(snapshot: Snapshot) -> None:
    """NotLiveError for a snapshot without a program, before an ended one of its name has made room for it."""
    if snapshot.meta.get("ended") or not program_of(snapshot):
        from ijfs.live.checkpoint.snapshot_io import program_in

        program_in(snapshot)


def started(out: Printer, info: InstanceInfo, how: str) -> None:
    """One line about an instance that has just begun to run."""
    took = f" in {text.seconds(info.phases['total'])}" if "total" in info.phases else ""
    out.line((info.name, "bold green"), f" {how}{took}", (f"  pid {info.pid}", "dim"))
