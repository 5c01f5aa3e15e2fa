"""`ijfs migrate`: a live program goes on on another machine, through a remote that both have."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from ijfs.cli import far_host, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE
from ijfs.cli.verbs.remote_upkeep import chosen

if TYPE_CHECKING:
    from ijfs.cli.far_host import FarHost
    from ijfs.live.client.api import SaveResult
    from ijfs_engine import Repository

GOES_TO = "goes to "
"""How the message of the snapshot begins in which a program is stopped for another machine."""


class _Move(NamedTuple):
    """One program on its way."""

    app: App
    repository: Repository
    remote: str
    there: FarHost
    name: str
    progress: Any

    def push(self, branch: str) -> int:
        """Send what the remote lacks of its branch; bytes."""
        from ijfs.live.uploads.reach import to_push

        refs, also = to_push(self.repository, [branch])
        return self.repository.remotes.push(self.remote, refs, also=also, progress=self.progress).sent


@verb("migrate")
@click.argument("name", type=INSTANCE)
@click.argument("host")
@click.option("--via", metavar="REMOTE", help="The remote that both machines know by this name (default: origin).")
@far_host.options
def migrate(app: App, name: str, host: str, via: str | None, transport: str, program: str) -> Answer:
    """Move the live program NAME to HOST: it goes on there with all its memory and files.

    First it is saved while it runs, HOST says whether it could run there, and it is sent. Then it is saved and
    stopped, what changed since is sent, and it runs there before its bytes have arrived. If it cannot, it runs here
    again: on one of the two, whatever becomes of the connection.
    """
    from ijfs.live.client import api as client

    repository = app.repository()
    there = far_host.FarHost(transport, host, program)
    move = _Move(app, repository, chosen(repository, via), there, name, app.progress(f"migrate {name}"))
    if not client.is_running(app.repository_path, name):
        return _went_on(move)
    _refuse_taken(move)
    with client.connect(app.repository_path, name, on_event=move.progress.event) as keeper:
        warm = keeper.save(f"before it goes to {host}")
        _check_fit(move, warm.snapshot)
        sent = move.push(warm.branch)
        began = time.monotonic()
        with _undisturbed():
            saved = keeper.save(f"{GOES_TO}{host}", stop=True)
    sent, started = _handed_over(move, saved, sent)
    down = time.monotonic() - began
    data = {"name": name, "host": host, "snapshot": saved.snapshot, "sent": sent, "down_s": down,
            "instance": started}  # fmt: skip

    def show(out: Printer) -> None:
        _show(out, move, saved.snapshot)
        out.line((f"  it stood still for {text.seconds(down)}; {text.size(sent)} sent", "dim"))

    return Answer(data, show)


def _refuse_taken(move: _Move) -> None:
    """InstanceExistsError where a program of that name runs there; AnsweredError, UnreachableError where nobody can be
    asked."""
    from ijfs.live.errors import InstanceExistsError

    there = move.there.host
    for one in move.there.run("ps")["instances"]:
        if one["name"] == move.name and one["status"] == "running":
            raise InstanceExistsError(f"a program called `{move.name}` runs on {there} already", hint="it runs on here")
    if move.remote not in {one["name"] for one in move.there.run("remote", "list")["remotes"]}:
        from ijfs_engine.errors import UnknownNameError

        url = next(one.url for one in move.repository.remotes.all() if one.name == move.remote)
        raise UnknownNameError(
            f"{there} has no remote '{move.remote}'", hint=f"`ijfs remote add {move.remote} {url}` there"
        )


def _check_fit(move: _Move, snapshot: str) -> None:
    """Whether it could run there, told before it is sent. PreflightError: then it was only saved here, and runs on."""
    from ijfs.live.checks.result import refused
    from ijfs_engine.errors import PreflightError

    against = [f"{one.check}: {one.evidence}" for one in refused(move.there.fits(move.app, snapshot))]
    if against:
        raise PreflightError(f"it could not run on {move.there.host}: {'; '.join(against)}", hint="it runs on here")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait: who is killed in the middle of the last save would not know that the program has stopped."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handed_over(move: _Move, saved: SaveResult, sent: int) -> tuple[int, Any]:
    """Send what changed, and have it run there: bytes sent in all, the instance there. Where that fails it runs here
    again, and what failed is raised."""
    from ijfs.cli.handover import Handover

    handover = Handover(move.repository, move.remote, move.there, move.name, saved.snapshot)
    try:
        sent += move.push(saved.branch)
        return sent, handover.ask()["instance"]
    except BaseException as error:
        if handover.where() == "there":
            return sent, None
        _back(move, saved.snapshot, error)


def _back(move: _Move, snapshot: str, why: BaseException) -> NoReturn:
    """Have it run here again, and say so."""
    from ijfs.live.client import api as client
    from ijfs_engine.errors import IjfsError

    try:
        client.restore(move.app.repository_path, snapshot, move.name, replace=True)
    except IjfsError as error:
        error.hint = (
            f"it is saved: `ijfs restore {snapshot[: text.SHORT_ID]} --name {move.name} --replace` has it run here"
        )
        raise
    if isinstance(why, IjfsError):
        why.hint = f"{why.hint or ''}; `{move.name}` runs here again".removeprefix("; ")
    else:
        move.app.warn(f"`{move.name}` runs here again")
    raise why


def _went_on(move: _Move) -> Answer:
    """Of a program that was stopped for this, and whose migration was killed: it runs there, or here again.
    InstanceExitedError for any other that does not run."""
    from ijfs.cli.handover import Handover
    from ijfs_engine.errors import IjfsError

    snapshot = _stopped_for(move)
    handover = Handover(move.repository, move.remote, move.there, move.name, snapshot, asked=True)
    if handover.where() == "here":
        _back(move, snapshot, IjfsError(f"the last migration of `{move.name}` did not end", hint="migrate it again"))
    data = {
        "name": move.name,
        "host": move.there.host,
        "snapshot": snapshot,
        "sent": 0,
        "down_s": None,
        "instance": None,
    }
    return Answer(data, lambda out: _show(out, move, snapshot))


def _stopped_for(move: _Move) -> str:
    from ijfs.live.client import api as client
    from ijfs.live.errors import InstanceExitedError

    snapshot = client.describe(move.app.repository_path, move.name).snapshot
    if snapshot is not None:
        record = move.repository.snapshot(bytes.fromhex(snapshot))
        if record.message == f"{GOES_TO}{move.there.host}":
            return snapshot
    raise InstanceExitedError(f"the program of `{move.name}` has ended")


def _show(out: Printer, move: _Move, snapshot: str) -> None:
    short = text.short(bytes.fromhex(snapshot))
    out.line((move.name, "bold green"), f" runs on {move.there.host} from ", (short, "yellow"))


COMMANDS = {"migrate": migrate}
