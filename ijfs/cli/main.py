"""The `ijfs` console script: finds the verb, runs it, turns every failure into a sentence and an exit code.

Verb modules are imported when their verb is called, so that `ijfs --help` and the shell's completion stay
fast; the table below is therefore the one place where a verb's summary stands.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import click

from ijfs.cli.app import App, Terminated, common_options
from ijfs.cli.entry import YOUNG, too_early, version_line
from ijfs.cli.output import OutputError, writing_out

if TYPE_CHECKING:
    from ijfs.cli.callers import Caller


class VerbEntry(NamedTuple):
    """Where a verb lives and what `ijfs --help` says of it."""

    module: str
    summary: str


SECTIONS: dict[str, dict[str, VerbEntry]] = {
    "Start here": {
        "init": VerbEntry("init", "Make a repository."),
        "demo": VerbEntry("demo", "Watch save, fork and restore work on real kernels."),
        "doctor": VerbEntry("doctor", "Check this machine, or one program, for what would stand in the way."),
    },
    "Live programs": {
        "run": VerbEntry("run", "Start a program in its sandbox."),
        "kernel": VerbEntry("kernel", "Start a Jupyter kernel, or make Jupyter start sandboxed ones."),
        "ps": VerbEntry("ps", "List live programs."),
        "top": VerbEntry("top", "Watch what live programs take, with the tree; keys save, undo, fork."),
        "logs": VerbEntry("logs", "Print what a program wrote."),
        "watch": VerbEntry("watch", "Print what happens, as it happens."),
        "cp": VerbEntry("cp", "Copy files out of a program or snapshot, or into a live program."),
        "attach": VerbEntry("attach", "Sit down at a program's terminal."),
        "exec": VerbEntry("exec_", "Run a command or a cell inside a live program."),
        "stop": VerbEntry("stop", "Stop live programs."),
    },
    "Servers": {
        "deploy": VerbEntry("deploy", "Keep a server behind a port: started by a request, parked without one."),
        "vllm": VerbEntry("vllm", "Serve a model by vLLM, with its own arguments."),
        "deployments": VerbEntry("deploy", "List deployments."),
        "park": VerbEntry("deploy", "Let a deployment or program stand still in memory, or on disk."),
        "wake": VerbEntry("deploy", "Let what is parked go on."),
        "undeploy": VerbEntry("deploy", "End a deployment and forget it."),
    },
    "Snapshots of them": {
        "save": VerbEntry("save", "Save a live program: memory, GPU memory and files."),
        "restore": VerbEntry("restore", "Bring a snapshot back to life."),
        "fork": VerbEntry("fork", "Make live siblings of a program or a snapshot."),
        "adopt": VerbEntry("adopt", "Take home the files that a program wrote."),
    },
    "History": {
        "log": VerbEntry("log", "List snapshots, newest first."),
        "tree": VerbEntry("tree", "Draw snapshots, branches and what is live."),
        "show": VerbEntry("show", "Show all that is known of one snapshot."),
        "diff": VerbEntry("diff", "Say what a program did since its snapshot; compare two."),
        "ls": VerbEntry("ls", "List files in a snapshot."),
        "cat": VerbEntry("cat", "Print a file of a snapshot."),
        "scan": VerbEntry("scan", "Look for keys in a snapshot's memory and files."),
        "branch": VerbEntry("refs", "List, make, move or delete branches."),
        "tag": VerbEntry("refs", "List, make or delete tags."),
        "sign": VerbEntry("sign", "Sign snapshots with a private key of ssh."),
        "verify": VerbEntry("sign", "Say who signed snapshots."),
        "rm": VerbEntry("refs", "Remove branches, tags or snapshots."),
    },
    "In and out": {
        "base": VerbEntry("base", "Store a machine's or image's files for programs to stand on."),
        "import": VerbEntry("import_", "Store a directory as a snapshot."),
        "copy": VerbEntry("copy", "Copy snapshots of another repository, encrypted or not."),
        "export": VerbEntry("export", "Write a snapshot to a directory, byte for byte."),
        "mount": VerbEntry("mount", "Show all snapshots as a filesystem."),
        "umount": VerbEntry("mount", "Take that filesystem away."),
    },
    "Many machines": {
        "remote": VerbEntry("remote", "Name object stores that hold a tree of snapshots."),
        "push": VerbEntry("remote", "Send branches and what they reach to a remote."),
        "fetch": VerbEntry("remote", "Look what is new at a remote."),
        "pull": VerbEntry("remote", "Copy branches of a remote here, whole."),
        "migrate": VerbEntry("migrate", "Move a live program to another machine."),
        "op": VerbEntry("remote_upkeep", "See and undo what was done at a remote."),
        "clone": VerbEntry("remote", "Make a repository that knows a remote's tree."),
    },
    "For agents": {
        "mcp": VerbEntry("mcp", "Serve an agent by the Model Context Protocol."),
        "serve": VerbEntry("serve", "Serve sandboxes over HTTP; E2B's clients speak to it."),
        "key": VerbEntry("serve", "List, make or remove keys of that server."),
    },
    "The repository": {
        "du": VerbEntry("du", "Say what each snapshot takes."),
        "stats": VerbEntry("stats", "Count what the repository holds."),
        "prune": VerbEntry("prune", "Thin branches out by a policy."),
        "gc": VerbEntry("gc", "Free what no branch, tag or live program reaches."),
        "fsck": VerbEntry("fsck", "Check every byte and reference."),
        "keyring": VerbEntry("keyring", "List, make or remove keys of an encrypted repository."),
        "config": VerbEntry("config", "Show or set what you always want: network, GPU, repository."),
        "completion": VerbEntry("completion", "Print a shell's completion script."),
    },
}
VERBS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class UnknownVerbError(click.UsageError):
    """A word that is no verb, with what to type instead where somebody can tell."""

    def __init__(self, word: str, advice: str, ctx: click.Context) -> None:
        super().__init__(f"there is no verb '{word}'" + (f": {advice}" if advice else ""), ctx)
        self.next_step = "`ijfs --help` lists the verbs"


class LazyGroup(click.Group):
    """Knows its verbs by name only; imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"ijfs.cli.verbs.{VERBS[cmd_name].module}")
        command: click.Command = module.COMMANDS[cmd_name]
        command.short_help = VERBS[cmd_name].summary
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            args = self._understood(ctx, args)
        found = super().resolve_command(ctx, args)
        ctx.ensure_object(App).verb = found[0] or ""
        return found

    def _understood(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The words with a verb in front that there is. UsageError with what to type where it is not plain."""
        from ijfs.cli import synonyms

        words = synonyms.rewritten(args)
        if words in (["--help"], ["--version"]):
            with writing_out():
                click.echo(ctx.get_help() if words == ["--help"] else version_line())
            ctx.exit()
        verb = synonyms.DONE_AS.get(words[0].lower())
        if verb is not None:
            ctx.ensure_object(App).note(f"this is `ijfs {verb}`")
            return [*verb.split(), *words[1:]]
        if words[0] not in VERBS:
            raise UnknownVerbError(words[0], synonyms.advice(words, VERBS), ctx)
        return words

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<10}", entry.summary) for name, entry in verbs.items()], col_max=12)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(version_line())
        ctx.exit()


cli = LazyGroup(
    "ijfs",
    params=[
        *common_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Print the version.",
        ),
    ],
    help="Git for running programs: save, restore and fork live notebook kernels, servers, anything.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 partial, 10 no repository, 11 locked, "
    "12 refused by preflight, 13 the target died, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    no_args_is_help=True,
)


def main(argv: Sequence[str] | None = None, *, caller: Caller | None = None) -> NoReturn:
    """Run the command line and exit; for a `caller`, whom this is done for. Nothing but SystemExit leaves this
    function."""
    gc.set_threshold(YOUNG)
    _standard_streams()
    try:
        _signals()
        code = invoke(list(sys.argv[1:] if argv is None else argv), caller=caller)
    except KeyboardInterrupt:  # the very first moment, or a second one while what came of the first was being said
        code = 128 + signal.SIGINT
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.default_int_handler, _leave):
            signal.signal(number, signal.SIG_DFL)  # nothing is left to be told of it
    # All is closed and written. Taking every module apart for circles took 15 ms, a seventh of a short command.
    gc.freeze()
    sys.exit(code)


def invoke(argv: list[str], *, caller: Caller | None = None) -> int:
    """Run the command line and return its exit code."""
    if os.geteuid() != 0:
        from ijfs.cli.callers import handed_over

        done = handed_over(argv)
        if done is not None:
            return done
    app = App(caller=caller, json="--json" in argv[: argv.index("--")] if "--" in argv else "--json" in argv)
    try:
        _dispatch(argv or ["--help"], app)
        with writing_out():
            sys.stdout.flush()
    except click.exceptions.Exit as exit_:
        return _flushed(exit_.exit_code)
    except Terminated as ended:
        app.warn("ended by a signal; nothing was left half done")
        return _flushed(int(str(ended.code)))
    except SystemExit as exit_:
        return _flushed(exit_.code if isinstance(exit_.code, int) else 1)
    except BaseException as error:
        return _reported(error, app)
    return 0


def _reported(error: BaseException, app: App) -> int:
    try:
        from ijfs.cli.failure import report
    except (OSError, ImportError, MemoryError):
        # Too few files or too little memory to load what says so: what failed first is said as it is.
        sys.stderr.write(f"ijfs: {error}\n")
        return 1
    return report(error, app)


def _dispatch(argv: list[str], app: App) -> None:
    """Parse and run. click's own `main` only serves the shell's completion: it has other ideas of exit codes."""
    if "_IJFS_COMPLETE" in os.environ:
        cli.main(args=argv, prog_name="ijfs", obj=app)
    with writing_out():  # the help, or the version
        context = cli.make_context("ijfs", argv, obj=app)
    with app.closing, context:
        cli.invoke(context)


def _standard_streams() -> None:
    """Something for each of the three descriptors that is closed, or the next file that is opened would be taken for it
    and written into. What is written to a standard output that is closed is an error, as of any program."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "r"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", encoding="utf-8", errors="backslashreplace"))


def _flushed(code: int) -> int:
    """The exit code, once all output is out: a reader that left is noticed here, not at interpreter exit."""
    try:
        with writing_out():
            sys.stdout.flush()
    except (OSError, OutputError) as error:
        from ijfs.cli.failure import report

        return report(error, App())
    return code


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(128 + number)


def _signals() -> None:
    """A terminated or hung-up ijfs cleans up like an interrupted one: 128 + the signal, as shells say it."""

    if signal.getsignal(signal.SIGINT) is too_early:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, too_early):
            signal.signal(number, _leave)
    if os.environ.get("IJFS_DEBUG"):
        import faulthandler

        faulthandler.enable()
