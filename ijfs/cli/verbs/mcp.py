"""`ijfs mcp`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ijfs.cli import starting
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer

if TYPE_CHECKING:
    from ijfs.live.model.records import Limits, Network

TOKEN_VARIABLE = "IJFS_MCP_TOKEN"


@verb("mcp")
@click.option("--kernel", default="python3", metavar="SPEC", help="The kernel spec of new sessions (default: python3).")
@starting.network_option
@starting.limit_options(anew=True)
@click.option("--http", is_flag=True, help="Serve over HTTP (default: standard input and output, for one client).")
@click.option("--host", default="127.0.0.1", help="With --http: where to listen (default: the loopback).")
@click.option("--port", type=click.IntRange(0, 65535), default=8717, help="With --http (default: 8717; 0: a free one).")
def mcp(app: App, kernel: str, network: str, http: bool, host: str, port: int, limits: Limits) -> Answer | None:
    """Serve an agent by the Model Context Protocol: it works in live kernels, goes back, branches (docs/mcp.md).

    With --http a client sends the token that stands in IJFS_MCP_TOKEN, or the one that is printed.
    """
    from ijfs.mcp import server
    from ijfs.mcp.sessions import Sessions
    from ijfs.sdk.repository import Repository

    if app.json:
        raise click.UsageError("the protocol has the standard output; --json goes with other verbs")
    repo = Repository.open(app.repository_path, create=True)
    way_out: Network = "slirp4netns" if network == "slirp4netns" else "none"
    sessions = Sessions(repo, kernel=kernel, network=way_out, limits=limits)
    if not http:
        server.serve_stdio(sessions)
        return None
    token = os.environ.get(TOKEN_VARIABLE) or server.new_token()
    with server.listen(host, port) as at:
        app.note(f"serving at http://{host}:{at.getsockname()[1]}/mcp")
        if TOKEN_VARIABLE not in os.environ:
            app.note(f"the token is {token}")
        server.serve_http(sessions, at, token)
    return None


COMMANDS = {"mcp": mcp}
