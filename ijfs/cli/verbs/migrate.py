"""`ijfs migrate`: a live program goes on on another machine, through a remote that both have."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from typing import TYPE_CHECKING, Any

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE
from ijfs.cli.verbs.remote import to_push
from ijfs.cli.verbs.remote_upkeep import chosen

if TYPE_CHECKING:
    from ijfs_engine import Repository


class There:
    """The other machine: runs ijfs there."""

    def __init__(self, transport: str, host: str, program: str) -> None:
        self.host = host
        self._command = [*shlex.split(transport), host]
        self._program = program

    def run(self, *words: str, may_refuse: bool = False) -> dict[str, Any]:
        """What a verb prints there with --json. IjfsError; with `may_refuse`, exit code 12 is no failure."""
        from ijfs_engine.errors import IjfsError

        line = " ".join([self._program, *map(shlex.quote, words), "--json"])
        try:
            done = subprocess.run([*self._command, line], capture_output=True, text=True, check=False)
        except OSError as error:
            raise IjfsError(f"{self._command[0]} does not run: {error.strerror}") from error
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise IjfsError(f"`ijfs {words[0]}` on {self.host} said: {said}",
                            hint="`--ijfs PATH` names ijfs there, `--ssh` how to get there") from None  # fmt: skip
        if "error" in answer:
            raise IjfsError(f"on {self.host}: {answer['error']['message']}", hint=answer["error"].get("hint"))
        if done.returncode and not (may_refuse and done.returncode == 12):
            raise IjfsError(f"`ijfs {words[0]}` on {self.host} failed with exit code {done.returncode}")
        assert isinstance(answer, dict)
        return answer


@verb("migrate")
@click.argument("name", type=INSTANCE)
@click.argument("host")
@click.option("--via", metavar="REMOTE", help="The remote that both machines know by this name (default: origin).")
@click.option("--ssh", "transport", metavar="COMMAND", default="ssh", help="How to get there (default: ssh).")
@click.option("--ijfs", "program", metavar="PATH", default="ijfs", help="What ijfs is called there (default: ijfs).")
def migrate(app: App, name: str, host: str, via: str | None, transport: str, program: str) -> Answer:
    """Move the live program NAME to HOST: it goes on there with all its memory and files.

    First it is saved while it runs, that is sent, and HOST says whether it could run there. Then it is saved and
    stopped, what changed since is sent, and it runs there before its bytes have arrived. If it cannot, it runs here
    again.
    """
    from ijfs.live.client import api as client

    repository = app.repository()
    remote = chosen(repository, via)
    there = There(transport, host, program)
    there.run("remote", "list")  # whether there is anybody
    progress = app.progress(f"migrate {name}")
    with client.connect(app.repository_path, name, on_event=progress.event) as keeper:
        warm = keeper.save(f"before it goes to {host}")
        sent = _push(repository, remote, name, progress)
        _check_fit(there, remote, warm.snapshot)
        began = time.monotonic()
        saved = keeper.save(f"goes to {host}", stop=True)
    try:
        sent += _push(repository, remote, name, progress)
        there.run("fetch", remote)
        started = there.run("restore", f"{remote}/{saved.snapshot}", "--name", name)
    except BaseException as error:
        client.restore(app.repository_path, saved.snapshot, name, replace=True)
        _say_it_is_back(error, name)
        raise
    down = time.monotonic() - began
    data = {"name": name, "host": host, "snapshot": saved.snapshot, "sent": sent, "down_s": down,
            "instance": started["instance"]}  # fmt: skip

    def show(out: Printer) -> None:
        out.line((name, "bold green"), f" runs on {host} from ", (text.short(bytes.fromhex(saved.snapshot)), "yellow"))
        out.line((f"  it stood still for {text.seconds(down)}; {text.size(sent)} sent", "dim"))

    return Answer(data, show)


def _push(repository: Repository, remote: str, name: str, progress: Any) -> int:
    refs, also = to_push(repository, [name])
    return repository.remotes.push(remote, refs, also=also, progress=progress).sent


def _check_fit(there: There, remote: str, snapshot: str) -> None:
    """Whether the program could run there. PreflightError: then it was only saved here, and runs on."""
    from ijfs_engine.errors import PreflightError

    there.run("fetch", remote)
    found = there.run("doctor", f"{remote}/{snapshot}", may_refuse=True)
    against = [f"{one['check']}: {one['evidence']}" for one in found["verdicts"] if one["outcome"] == "refuse"]
    if against:
        raise PreflightError(f"it could not run on {there.host}: {'; '.join(against)}", hint="it runs on here")


def _say_it_is_back(error: BaseException, name: str) -> None:
    from ijfs_engine.errors import IjfsError

    if isinstance(error, IjfsError):
        error.hint = f"{error.hint or ''}; `{name}` runs here again".removeprefix("; ")


COMMANDS = {"migrate": migrate}
