"""`ijfs exec`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ijfs.cli.app import App, Verb, verb
from ijfs.cli.output import Answer, Printer
from ijfs.cli.params import INSTANCE, Seconds, elsewhere, needless

if TYPE_CHECKING:
    from ijfs.jupyter.outputs import CellResult


NOT_FOUND = 127
"""As shells have it."""


class ExecVerb(Verb):
    """`exec NAME CMD -c …`, as with docker: what follows a command is the command's, `--` or not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the `--` in where it was left out."""
        takes_value = {
            o
            for p in self.get_params(ctx)
            if isinstance(p, click.Option) and not p.is_flag and not p.count
            for o in p.opts
        }
        at = 0
        while at < len(args) and args[at].startswith("-"):
            at += 2 if args[at] in takes_value else 1
        if "--" not in args[:at] and at + 1 < len(args) and not args[at + 1].startswith("-"):
            args = [*args[: at + 1], "--", *args[at + 1 :]]
        return super().parse_args(ctx, args)


@verb("exec", kind=ExecVerb)
@click.argument("name", type=INSTANCE)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-c", "--code", metavar="CODE", help="Run this as a cell of a kernel.")
@click.option("--timeout", type=Seconds(), metavar="S", help="Give up on a cell after S seconds.")
@needless("-i", "--interactive")
@needless("-t", "--tty")
@elsewhere("-d", "--detach", said="write `… &` in a shell: `ijfs exec NAME -- sh -c 'COMMAND &'`")
def exec_(app: App, name: str, command: tuple[str, ...], code: str | None, timeout: float | None) -> Answer | None:
    """Run something inside the live program NAME.

    \b
    ijfs exec NAME CMD …        a command, among its processes, files and ports; `bash` is a shell
    ijfs exec NAME -c 'code'    a cell in a kernel; prints what it prints
    ijfs exec NAME -            a cell read from standard input

    The exit code is the command's own; 1 for a cell that raised.
    """
    if bool(command) == (code is not None):
        raise click.UsageError("say what to run: `-- CMD`, `-c CODE`, or `-` to read a cell")
    app.live_programs()
    if command == ("-",):
        code = sys.stdin.read()
    return _command(app, name, command) if code is None else _cell(app, name, code, timeout)


def _command(app: App, name: str, command: tuple[str, ...]) -> Answer:
    from ijfs.live.client.api import describe, exec_command

    if app.json:
        raise click.UsageError("a command's output is its own; --json goes with cells")
    code = exec_command(app.repository_path, name, command)
    if code == NOT_FOUND and describe(app.repository_path, name).kind == "kernel":
        app.note(f"a command was looked for; a cell is run by `ijfs exec {name} -c CODE`")
    return Answer({}, None, code)


def _cell(app: App, name: str, code: str, timeout: float | None) -> Answer:
    from ijfs.sdk.box import Box

    box = Box(app.repository_path, name)
    result = box.run(code, timeout=timeout, interrupt=False, on_stream=_ignore if app.json or app.listener else _print)
    data = {
        "name": name,
        "status": result.status,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "result": result.result_text,
        "error": result.error,
    }
    return Answer(data, lambda out: _end(out, result), 0 if result.status == "ok" else 1)


def _ignore(name: str, content: str) -> None:
    """With --json, and in the demo, all of it comes at the end."""


def _print(name: str, content: str) -> None:
    stream = sys.stderr if name == "stderr" else sys.stdout
    stream.write(content)
    stream.flush()


def _end(out: Printer, result: CellResult) -> None:
    """What is left to print when the cell is done: the value of its last expression, or its traceback."""
    if result.result_text:
        out.raw(result.result_text + "\n")
    if result.error:
        _print("stderr", result.error + "\n")


COMMANDS = {"exec": exec_}
