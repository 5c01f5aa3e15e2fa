"""`ijfs serve` and `ijfs key`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import starting, text
from ijfs.cli.app import App, VerbGroup, verb
from ijfs.cli.callers import SOCKET
from ijfs.cli.output import Answer, Column, Printer

if TYPE_CHECKING:
    from ijfs.live.model.records import Limits, Network
    from ijfs.serve.keys import Keys

REPOSITORIES = "/var/lib/ijfs/users"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
KEY_COLUMNS = [
    Column("KEY", style="bold green"),
    Column("AGE", right=True),
    Column("SANDBOXES", right=True),
    Column("CALLS", right=True),
]


@verb("serve")
@click.option("--host", default="127.0.0.1", help="Where to listen (default: the loopback; elsewhere with --tls-cert).")
@click.option("--port", type=click.IntRange(0, 65535), default=8718, help="Default: 8718; 0: a free one.")
@click.option("--tls-cert", type=FILE, metavar="FILE", help="A certificate (PEM, with its chain).")
@click.option("--tls-key", type=FILE, metavar="FILE", help="Its private key.")
@click.option("--kernel", default="python3", metavar="SPEC", help="The kernel spec of code interpreters.")
@click.option(
    "--home", default="/root", metavar="DIR", help="Where the programs of new templates start, and their HOME."
)
@starting.network_option
@starting.limit_options(anew=True)
@click.option(
    "--users", metavar="GROUP", help="Let users of this group run programs, as themselves, by their own `ijfs`."
)
@click.option("--users-socket", default=SOCKET, metavar="PATH", help=f"Where they call (default: {SOCKET}).")
@click.option("--users-dir", default=REPOSITORIES, metavar="DIR", help=f"Their repositories (default: {REPOSITORIES}).")
@click.option(
    "--user-programs", type=click.IntRange(1), default=50, metavar="N", help="Live ones of each user (default: 50)."
)
@click.option(
    "--user-calls", type=click.IntRange(1), default=16, metavar="N", help="Under way of each user (default: 16)."
)
def serve(
    app: App,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    kernel: str,
    home: str,
    network: str,
    users: str | None,
    users_socket: str,
    users_dir: str,
    user_programs: int,
    user_calls: int,
    limits: Limits,
) -> Answer | None:
    """Serve sandboxes to programs on this machine and others; E2B's clients speak to it (docs/serve.md).

    Until interrupted. Clients need a key: `ijfs key add NAME`. Sandboxes live on when the server ends, and the next one
    finds them.
    """
    from ijfs.sdk.repository import Repository
    from ijfs.serve import running
    from ijfs.serve.app import Server, Settings
    from ijfs.serve.users import Users

    if app.json:
        raise click.UsageError("it answers nothing by itself; --json goes with other verbs")
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if tls_cert is None and not running.is_loopback(host):
        raise click.UsageError(f"{host} is reached by others: keys and data want --tls-cert and --tls-key there")
    repo = Repository.open(app.repository_path, create=True)
    if not _keys(app).all() and users is None:
        raise click.UsageError("nobody could call: `ijfs key add NAME` makes a key")
    way_out: Network = "slirp4netns" if network == "slirp4netns" else "none"
    settings = Settings(kernel=kernel, home=home, network=way_out, limits=limits)
    of_users = (
        nullcontext()
        if users is None
        else Users(
            Path(users_socket), users, Path(users_dir), programs=user_programs, calls=user_calls, limits=limits
        ).served()
    )
    with of_users, running.listen(host, port) as at:
        scheme = "http" if tls_cert is None else "https"
        app.note(f"serving at {scheme}://{host}:{at.getsockname()[1]}")
        running.run(Server(repo, settings), at, certificate=tls_cert, key=tls_key)
    return None


@click.group("key", cls=VerbGroup)
def key() -> None:
    """Who may call `ijfs serve`: keys by name. Only their hashes are kept."""


@verb("key add")
@click.argument("name")
@click.option("--sandboxes", type=click.IntRange(0), default=50, metavar="N", help="So many at a time (default: 50).")
@click.option("--calls", type=click.IntRange(1), default=200, metavar="N", help="So many under way (default: 200).")
def add(app: App, name: str, sandboxes: int, calls: int) -> Answer:
    """Make a key for NAME and print it, this once."""
    from ijfs.sdk.repository import Repository

    Repository.open(app.repository_path, create=True)
    made = _keys(app).add(name, sandboxes=sandboxes, calls=calls)
    return Answer({"name": name, "key": made}, lambda out: out.line(made))


@verb("key list")
def list_(app: App) -> Answer:
    """List keys, without what they are."""
    found = _keys(app).all()
    data = [{"name": k.name, "made_ns": k.made_ns, "sandboxes": k.sandboxes, "calls": k.calls} for k in found]

    def show(out: Printer) -> None:
        rows = [[k.name, text.ago(k.made_ns), str(k.sandboxes), str(k.calls)] for k in found]
        out.table(KEY_COLUMNS, rows)

    return Answer({"keys": data}, show)


@verb("key remove")
@click.argument("name")
def remove(app: App, name: str) -> Answer:
    """Let nobody in with the key of NAME any more, also at a server that runs. Its sandboxes end with their time."""
    _keys(app).remove(name)
    return Answer({"name": name}, lambda out: out.line(f"key {name} is removed"))


def _keys(app: App) -> Keys:
    from ijfs.serve.keys import Keys, path_in

    return Keys(path_in(app.repository_path))


for command in (add, list_, remove):
    key.add_command(command)
COMMANDS = {"serve": serve, "key": key}
