"""Every way a verb can fail, as a sentence, a hint and an exit code. Called by `main.invoke` alone.

IJFS_DEBUG=1 shows the traceback as well; without it no traceback reaches a user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TextIO

import click

from ijfs.cli import synonyms
from ijfs.cli.app import App
from ijfs.cli.output import Printer, write_json

INTERRUPTED = 130
BROKEN_PIPE = 128 + 13
"""What a shell reports of a program that SIGPIPE ended; `git log | head` leaves the same."""

# As ijfs_engine.errors has it: where the engine cannot be imported, this must still speak.
NOT_BUILT = "run `tools/setup`, or install ijfs again: a compiled part is missing"

_OS_HINTS = {
    errno.ENOSPC: "nothing was lost; free space on that filesystem (`ijfs gc` may help) and try again",
    errno.EACCES: "ijfs needs access to it; saving and restoring programs needs root",
    errno.EPERM: "saving and restoring programs needs root",
    errno.EROFS: "choose a place that can be written to",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine has too many files open; try again when it has fewer",
    errno.ENOMEM: "there is too little memory, or the limit of address space is too low (`ulimit -v`)",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
}
_OUT_OF_MEMORY = "there is not enough memory"
_NO_THREAD = "can't start new thread"
_NO_MAP = "failed to map segment"
"""What the loader says of a compiled part where addresses are short."""


@dataclass(frozen=True)
class Failure:
    """What is said of an error: its class name for scripts, a sentence, a hint, the exit code."""

    type: str
    message: str
    hint: str | None
    exit_code: int


def report(error: BaseException, app: App) -> int:
    """Say what happened (on standard error, or as the JSON object) and return the exit code."""
    if os.environ.get("IJFS_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        return _pipe_closed()
    failure = explain(error, app.verb)
    if failure.type == "UnknownNameError" and (hint := _never_saved(getattr(error, "name", ""), app)):
        failure = replace(failure, hint=hint)
    if app.json:
        try:
            write_json({"error": {**vars(failure)}})
            sys.stdout.flush()
            return failure.exit_code
        except BrokenPipeError:
            return _pipe_closed()
        except OSError:
            pass  # where nothing can be written; there is one more place
    _discard(sys.stdout)
    try:
        _print(failure)
    except OSError:
        _discard(sys.stderr)
    return failure.exit_code


def _print(failure: Failure) -> None:
    printer = Printer(sys.stderr)
    printer.line(("ijfs: ", "bold red"), failure.message)
    if failure.hint:
        printer.line(("hint: ", "cyan"), failure.hint)
    sys.stderr.flush()


def explain(error: BaseException, verb: str = "") -> Failure:
    """The failure an exception means to a user. `verb`: what was called, where the exception does not know."""
    if hasattr(error, "hint") and hasattr(error, "exit_code"):
        # An IjfsError, known by its fields: where the engine cannot be imported, this must still speak.
        return Failure(type(error).__name__, str(error), error.hint, error.exit_code)
    match error:
        case KeyboardInterrupt() | click.Abort():
            return Failure("Interrupted", str(error) or "interrupted; nothing was left half done", None, INTERRUPTED)
        case click.NoSuchOption():
            return Failure("UsageError", _no_such_option(error), f"`{_command(error, verb)} --help` shows how", 2)
        case click.UsageError():
            hint = getattr(error, "next_step", None) or f"{_usage(error)}`{_command(error, verb)} --help` shows how"
            return Failure("UsageError", _lower(" ".join(error.format_message().split())), hint, 2)
        case click.ClickException():
            return Failure(type(error).__name__, _lower(error.format_message()), None, error.exit_code)
        case BaseExceptionGroup() if error.exceptions:
            return explain(error.exceptions[0], verb)
        case ImportError() if code := _refusal_in(str(error)):
            return Failure("SystemError", f"a part of ijfs does not load: {error.msg}", _OS_HINTS[code], 1)
        case ImportError() if error.name and error.name.split(".")[0] in ("ijfs", "ijfs_engine"):
            return Failure("MissingPackage", f"ijfs is not whole: {error.msg}", NOT_BUILT, 1)
        case ModuleNotFoundError() if error.name:
            return Failure(
                "MissingPackage", f"the Python package '{error.name}' is not installed", *_missing(error.name)
            )
        case AttributeError() | TypeError() if older := _older_than_source():
            said = f"the compiled part {older} is older than the rest of ijfs: {error}"
            return Failure("MissingPackage", said, "`make setup` in the checkout builds it anew", 1)
        case MemoryError():
            return Failure("SystemError", _OUT_OF_MEMORY, _OS_HINTS[errno.ENOMEM], 1)
        case RuntimeError() if _NO_THREAD in str(error):
            hint = "raise the limits of processes (`ulimit -u`, a container's pids) and of address space (`ulimit -v`)"
            return Failure("SystemError", f"the system refuses: {error}", hint, 1)
        case OSError() if error.strerror:
            return Failure("SystemError", _os_sentence(error), _OS_HINTS.get(error.errno or 0), 1)
    message = f"unexpected {type(error).__name__}: {error}".rstrip(": ")
    return Failure("InternalError", message, "this is a fault of ijfs; IJFS_DEBUG=1 shows where", 1)


def _refusal_in(message: str) -> int | None:
    """The limit that the loader of a compiled part met; None for any other reason."""
    if _NO_MAP in message:
        return errno.ENOMEM
    return next((code for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) if os.strerror(code) in message), None)


def _older_than_source(names: Iterable[str] | None = None) -> str | None:
    """A compiled part in use, of those of these names, whose source, beside it in a checkout, was changed since it was
    built."""
    for name in list(sys.modules if names is None else names):
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name.startswith(("ijfs.", "ijfs_engine.")) and file.endswith(".so"):
            source = os.path.join(os.path.dirname(file), f"{name.rpartition('.')[2]}.pyx")
            with contextlib.suppress(OSError):
                if os.stat(source).st_mtime > os.stat(file).st_mtime:
                    return name
    return None


def _command(error: click.UsageError, verb: str) -> str:
    return error.ctx.command_path if error.ctx else f"ijfs {verb}".rstrip()


def _no_such_option(error: click.NoSuchOption) -> str:
    """With the option that a slip of the fingers makes this of. (What click finds alike means something else.)"""
    known = [name for param in error.ctx.command.get_params(error.ctx) for name in param.opts] if error.ctx else []
    near = synonyms.nearest(error.option_name, (name for name in known if name.startswith("--")))
    return f"no such option '{error.option_name}'" + (f": did you mean `{near}`?" if near else "")


def _usage(error: click.UsageError) -> str:
    """What a verb takes, where something that it needs was left out, or is too much: `ijfs diff OLD [NEW]`. What is too
    much is mostly a name or a message."""
    too_much = error.message.startswith("Got unexpected extra argument")
    if error.ctx is None or not (too_much or isinstance(error, click.MissingParameter)):
        return ""
    pieces = [piece for piece in error.ctx.command.collect_usage_pieces(error.ctx) if piece != "[OPTIONS]"]
    for param in error.ctx.command.params if too_much else ():
        if {"--name", "--names", "--message"} & {*param.opts} and isinstance(param, click.Option):
            pieces.append(f"[{param.opts[0]} {param.metavar or 'TEXT'}]")
    return f"`{' '.join([error.ctx.command_path, *pieces])}`; "


def _never_saved(name: str, app: App) -> str:
    """What to do with a program whose name was taken for that of a snapshot; "" where there is no such program."""
    from ijfs.live.model.paths import InstancePaths, check_name
    from ijfs.live.model.record_file import read_record
    from ijfs_engine.errors import IjfsError

    paths, record = None, None
    with contextlib.suppress(IjfsError):
        paths = InstancePaths.of(app.repository_path, check_name(name)) if name else None
        record = read_record(paths) if paths is not None and paths.record.exists() else None
    if paths is None or not paths.record.exists():
        return ""
    if record is None or record.status != "exited":
        then = f"`ijfs save {name}` makes one, `ijfs stop --rm {name}` ends and forgets it"
        return f"`{name}` is a program of which there is no snapshot: {then}"
    files = f"`ijfs cp {name}:PATH .` takes out a file, `ijfs stop --rm {name}` forgets it"
    began = _began_from(app, record.snapshot)
    again = f"`ijfs restore {began[:10]} --name {name}2` goes on from where it began, " if began else ""
    return f"`{name}` has ended, and its memory was never saved: {again}{files}"


def _began_from(app: App, snapshot: str | None) -> str | None:
    """The snapshot with memory that a program stood on, in hex; None where there is none. What the verb had open is
    closed by now."""
    from ijfs.cli.lost import with_memory
    from ijfs_engine import Repository
    from ijfs_engine.errors import IjfsError

    if snapshot is None:
        return None
    with contextlib.suppress(IjfsError), Repository.open(app.repository_path) as repository:
        found = with_memory(repository, snapshot)
        return None if repository.snapshot(bytes.fromhex(found)).meta.get("ended") else found
    return None


def _missing(package: str) -> tuple[str, int]:
    extra = {
        "jupyter_client": "jupyter",
        "ipykernel": "jupyter",
        "jupyter_server": "jupyter",
        "cuda": "gpu",
        "mcp": "mcp",
        "obstore": "remote",
    }
    name = extra.get(package.split(".")[0])
    return (f"pip install 'ijfs[{name}]'" if name else f"install it: pip install {package}"), 1


def _os_sentence(error: OSError) -> str:
    reason = (error.strerror or "").lower()
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{where}{reason}"


def _lower(message: str) -> str:
    message = message.strip().rstrip(".")
    return message[:1].lower() + message[1:] if message[1:2].islower() else message


def _pipe_closed() -> int:
    """The reader has left: what is buffered goes nowhere, quietly."""
    _discard(sys.stdout)
    _discard(sys.stderr)
    return BROKEN_PIPE


def _discard(stream: TextIO) -> None:
    """Let what a stream holds and cannot write go nowhere, also at interpreter exit."""
    try:
        stream.flush()
    except (OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
