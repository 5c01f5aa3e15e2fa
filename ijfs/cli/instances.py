"""Live instances as verbs show them: the JSON object, the table, names that are free. Called by the live verbs."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ijfs.cli import text
from ijfs.cli.output import Column, Printer, Span

if TYPE_CHECKING:
    from ijfs.cli.app import App
    from ijfs.live.client.api import InstanceInfo
    from ijfs.live.process.fork_request import ForkServerInfo
    from ijfs_engine import Snapshot

COLUMNS = [
    Column("NAME", style="bold green"),
    Column("STATUS"),
    Column("PID", right=True),
    Column("AGE", right=True),
    Column("SNAPSHOT", style="yellow"),
    Column("MEMORY IN", right=True),
    Column("PROGRAM", flex=True),
]


def instance_json(info: InstanceInfo) -> dict[str, Any]:
    """The object that stands for a live instance in every verb's JSON."""
    import msgspec

    return dict(msgspec.to_builtins(info))


def table(out: Printer, infos: Iterable[InstanceInfo]) -> None:
    """What `ijfs ps` prints."""
    out.table(COLUMNS, (_row(info) for info in infos))


def _row(info: InstanceInfo) -> list[Span]:
    live = info.status == "running"
    return [
        (info.name, "bold green" if live else "dim"),
        status(info),
        str(info.pid or ""),
        (text.age(info.created_ns), "dim"),
        (info.snapshot or "")[: text.SHORT_ID],
        f"{info.memory:.0%}" if live else "",
        program(info),
    ]


def spare(out: Printer, waiting: ForkServerInfo | None) -> None:
    """One line about the process that waits for the next start, where one does."""
    if waiting is not None:
        memory = f", {text.size(waiting.memory)}" if waiting.memory is not None else ""
        about = f"pid {waiting.pid}, {text.age(waiting.since_ns)}{memory}"
        out.line((f"a spare waits for the next start or restore ({about}); `ijfs stop --all` ends it", "dim"))


def status(info: InstanceInfo) -> Span:
    """One word and its colour: running, or how it ended; and whether a save is not durable yet."""
    saving = " (saving)" if info.saving else ""
    if info.status == "running":
        return (f"{info.status}{saving if info.keeper_running else ' (no keeper)'}", "green")
    if info.status == "exited" and info.exit_status is not None:
        return (f"exited {info.exit_status}{saving}", "dim" if info.exit_status == 0 else "red")
    return (info.status, "dim")


def program(info: InstanceInfo) -> str:
    """The command line as it was given; a kernel's is of no interest to anyone."""
    if info.kind == "kernel":
        kernel = info.connection.get("kernel_name") if info.connection else ""
        return f"kernel {kernel}".rstrip()
    return shlex.join(info.argv)


def free_name(app: App, wish: str) -> str:
    """A name for a new instance: the wish, else the wish with the first free number behind it."""
    from ijfs.live.client.api import list_instances

    base = _sound(os.path.basename(wish))
    taken = {info.name for info in list_instances(app.repository_path) if info.status != "exited"}
    return next(name for name in itertools.chain([base], _numbered(base, 2)) if name not in taken)


def free_names(app: App, wish: str, count: int) -> list[str]:
    """Names for siblings: the wish with the first free numbers behind it."""
    from ijfs.live.client.api import list_instances

    taken = {info.name for info in list_instances(app.repository_path)}
    return list(islice((name for name in _numbered(_sound(wish), 1) if name not in taken), count))


def _sound(wish: str) -> str:
    """What is left of a wish when only the characters of an instance's name are kept."""
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "-" for c in wish)
    return kept.strip("._-")[:48] or "program"


def _numbered(base: str, start: int) -> Iterator[str]:
    return (f"{base}-{i}" for i in itertools.count(start))


def name_of(snapshot: Snapshot) -> str:
    """The instance a snapshot was saved from; "" for one that was imported."""
    spec = snapshot.meta.get("spec")
    return str(spec.get("name", "")) if isinstance(spec, dict) else ""


def started(out: Printer, info: InstanceInfo, how: str) -> None:
    """One line about an instance that has just begun to run."""
    took = f" in {text.seconds(info.phases['total'])}" if "total" in info.phases else ""
    out.line((info.name, "bold green"), f" {how}{took}", (f"  pid {info.pid}", "dim"))
