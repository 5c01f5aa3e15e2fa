"""`ijfs completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer

HOW = {
    "bash": 'eval "$(ijfs completion bash)"        # in ~/.bashrc',
    "zsh": 'eval "$(ijfs completion zsh)"         # in ~/.zshrc',
    "fish": "ijfs completion fish > ~/.config/fish/completions/ijfs.fish",
}


@verb("completion", epilog="To use it: " + HOW["bash"])
@click.argument("shell", type=click.Choice(sorted(HOW)))
def completion(app: App, shell: str) -> Answer:
    """Print the completion script for SHELL. It completes verbs, options, snapshots, branches and live names."""
    from ijfs.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "ijfs", "_IJFS_COMPLETE").source_template % {
        "complete_func": "_ijfs_completion",
        "complete_var": "_IJFS_COMPLETE",
        "prog_name": "ijfs",
    }
    return Answer({"shell": shell, "script": script}, lambda out: out.raw(script))


COMMANDS = {"completion": completion}
