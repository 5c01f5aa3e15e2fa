"""What all verbs share: the repository they mean, how they answer, and the options every one of them takes.

A verb is a function `(app, …) -> Answer` under `@verb`; it opens what it needs through `App`, never prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ijfs.cli.output import Answer, Printer, write_json, writing_out

if TYPE_CHECKING:
    from ijfs.cli.callers import Caller
    from ijfs.cli.progress import Reporter
    from ijfs_engine import Repository

F = TypeVar("F", bound=Callable[..., Any])


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: nobody has said yet what became of what was going on."""


class App:
    """One call of the command line: common options, and the repository once it is opened."""

    def __init__(
        self,
        *,
        repo: Path | None = None,
        json: bool = False,
        quiet: int = 0,
        caller: Caller | None = None,
        listener: Callable[[Answer], None] | None = None,
    ) -> None:
        self.repo = repo
        self.json = json
        self.quiet = quiet
        self.verbose = 0
        self.verb = ""
        """Which verb is called, once that is known."""
        self.caller = caller
        """The user without root for whom this is done (callers.py)."""
        self.closing = contextlib.ExitStack()
        self.listener = listener
        """Takes the answer in place of standard output: how `ijfs demo` runs verbs."""
        self._repository: Repository | None = None
        self._said_whose = False
        self._reporters: list[Reporter] = []

    @property
    def repository_path(self) -> Path:
        """-r/--repo, else IJFS_REPO, else the user's XDG data directory."""
        if self.caller is not None:
            return self.caller.repo
        if self.repo is not None:
            return self.repo
        if os.environ.get("IJFS_REPO"):
            return Path(os.environ["IJFS_REPO"])
        from platformdirs import user_data_path

        from ijfs.cli import sudo

        own = sudo.repository()
        if own is not None:
            return own
        path = user_data_path("ijfs", appauthor=False)
        if not self._said_whose and (whose := sudo.whose(path)):
            self._said_whose = True
            self.note(whose)
        return path

    def repository(self, *, damaged: bool = False) -> Repository:
        """The repository, opened once, closed when the verb ends; `damaged`: even without an index.

        NoRepositoryError, UnknownFormatError, CorruptError.
        """
        if self._repository is None:
            from ijfs.cli.passphrases import ask_at_terminal
            from ijfs_engine import Repository

            ask_at_terminal(self)
            self._repository = self.closing.enter_context(Repository.open(self.repository_path, damaged=damaged))
        return self._repository

    def repository_to_start_in(self) -> Repository:
        """The repository, made where there is none and nobody has named one: the first program needs no `ijfs init`.
        What `repository` raises; PreflightError for who could start no program."""
        from ijfs_engine.errors import NoRepositoryError

        try:
            return self.repository()
        except NoRepositoryError:
            if self.repo is not None or os.environ.get("IJFS_REPO"):
                raise
        from ijfs.live.checks import privilege
        from ijfs_engine import Repository

        privilege.require()
        Repository.init(self.repository_path).close()
        self.note(f"made a repository in {self.repository_path}")
        return self.repository()

    def live_programs(self) -> Path:
        """The repository's path, for what is done with live programs alone: they can be reached without its index.
        NoRepositoryError, UnknownFormatError; StorageError where a link leads to those of others."""
        from ijfs.live.model.paths import live_directory
        from ijfs_engine.errors import CorruptError, StorageError

        try:
            self.repository()
        except (CorruptError, StorageError) as error:
            if live_directory(self.repository_path).is_symlink():
                raise
            self.warn(f"{error}{f' ({error.hint})' if error.hint else ''}")
        return self.repository_path

    def progress(self, title: str) -> Reporter:
        """A progress reporter: bars on a terminal, nothing in a pipe, with --json or with -q."""
        from ijfs.cli.progress import Reporter

        visible = not self.json and not self.quiet and sys.stderr.isatty()
        self._reporters.append(self.closing.enter_context(Reporter(title, visible=visible)))
        return self._reporters[-1]

    def end_progress(self) -> None:
        """No bar is shown any more: what comes now has the screen."""
        for reporter in self._reporters:
            reporter.close()

    @property
    def can_ask(self) -> bool:
        """Whether somebody is there who can be asked."""
        return not self.json and not self.quiet and sys.stdin.isatty() and sys.stderr.isatty()

    def note(self, message: str) -> None:
        """A remark for a person, on standard error: not with -q, not with --json."""
        if not self.quiet and not self.json:
            Printer(sys.stderr).line((message, "dim"))

    def warn(self, message: str) -> None:
        """Something that went otherwise than asked: always on standard error, once no bar is in the way."""
        self.end_progress()
        Printer(sys.stderr).line(("warning: ", "yellow"), message)

    @contextlib.contextmanager
    def interruptible(self, meaning: Callable[[], str]) -> Iterator[None]:
        """Around what goes on, or leaves something, when the verb is interrupted: `meaning` says then what became of
        it. (Without, an interrupted verb has left nothing.)"""
        try:
            yield
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {meaning()}") from None
        except Terminated as ended:
            self.warn(f"ended by a signal; {meaning()}")
            raise SystemExit(ended.code) from None

    def answer(self, answer: Answer, name: str) -> None:
        """Print what a verb returned in the way that was asked for, once no bar is in the way."""
        self.end_progress()
        if self.listener is not None:
            self.listener(answer)
            return
        with writing_out():
            if self.json:
                write_json({"verb": name, **answer.data})
            elif self.quiet:
                for listed in answer.names:
                    Printer().line(listed)
            elif answer.show is not None:
                answer.show(Printer())
            sys.stdout.flush()


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store a common option; given after the verb it wins over the same one before it."""
    app = ctx.ensure_object(App)
    if value is not None and value is not False and value != 0 and param.name:
        setattr(app, {"as_json": "json"}.get(param.name, param.name), value)


def common_options() -> list[click.Option]:
    """The options every verb and the group take; a new list each time, for click binds them to a command."""
    kept: dict[str, Any] = {"expose_value": False, "callback": _keep}
    return [
        click.Option(
            ["-r", "--repo"],
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Repository (default: $IJFS_REPO, else the XDG data directory).",
            **kept,
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object (docs/json.md).", **kept),
        click.Option(["-q", "--quiet"], count=True, help="Print errors only; of a list its names.", **kept),
        click.Option(["-v", "--verbose"], count=True, help="Say more.", **kept),
    ]


class Verb(click.Command):
    """A command that also takes the common options."""

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """As of any command; its help may be printed meanwhile."""
        with writing_out():
            return super().make_context(*args, **settings)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not any(p.name == "as_json" for p in self.params):
            self.params = [*self.params, *common_options()]
        return super().get_params(ctx)


class VerbGroup(click.Group):
    """A verb with verbs of its own (`ijfs kernel …`)."""

    command_class = Verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As a group does; without a verb, which there are."""
        if not args and not ctx.resilient_parsing:
            *others, last = (f"`ijfs {self.name} {name}`" for name in self.commands)
            raise click.UsageError(f"say which: {', '.join(others)} or {last}", ctx)
        return super().parse_args(ctx, args)


def run_verb(function: Callable[..., Answer | None], verb_name: str, /, *args: Any, **kwargs: Any) -> None:
    """Call a verb, print its answer, close what it opened, leave with its exit code."""
    from ijfs import settings

    app = click.get_current_context().ensure_object(App)
    settings.hand_on()
    if app.caller is not None:
        app.caller.check(click.get_current_context())
    with app.closing:
        answer = _inside(app, verb_name, kwargs)
        if answer is None:
            answer = function(app, *args, **kwargs)
        if answer is not None:
            app.answer(answer, verb_name)
    if answer is not None and answer.exit_code:
        raise SystemExit(answer.exit_code)


def _inside(app: App, verb_name: str, given: dict[str, Any]) -> Answer | None:
    """What the keeper answers where this is typed in a sandbox; None anywhere else. (Loaded only there.)"""
    if "IJFS_GUEST" not in os.environ or app.repo is not None:
        return None
    from ijfs.cli import inside

    return inside.answered(app, verb_name, given)


def verb(name: str, *, kind: type[Verb] = Verb, **settings: Any) -> Callable[[Callable[..., Answer | None]], Verb]:
    """Make a function a verb: `@verb("log")` above its click options. Its docstring is the help."""

    def wrap(function: Callable[..., Answer | None]) -> Verb:
        import functools

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> None:
            run_verb(function, name, *args, **kwargs)

        command = click.command(name.rsplit(" ", 1)[-1], cls=kind, **settings)(call)
        assert isinstance(command, Verb)
        return command

    return wrap
