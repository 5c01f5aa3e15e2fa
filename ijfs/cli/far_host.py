"""Another machine, reached by ssh: runs ijfs there. For `ijfs migrate` and `ijfs doctor --on`."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ijfs_engine.errors import IjfsError

if TYPE_CHECKING:
    from ijfs.cli.app import App
    from ijfs.live.checks.result import CheckResult

F = TypeVar("F", bound=Callable[..., Any])

SSH = "ssh -o ConnectTimeout=15 -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
"""A machine that is gone is noticed after half a minute, where TCP waits for hours."""

REFUSED = 12
"""Exit code of a preflight that refuses: an answer, and no failure."""

_OPENS_NOTHING = 255
"""What ssh ends with when it is ssh that failed."""


class UnreachableError(IjfsError):
    """Nobody knows what became of what was asked of another machine: there was no answer."""


class AnsweredError(IjfsError):
    """ijfs on another machine says that it failed. `kind`: the class of its error, where it says one."""

    kind: str = ""


def options(function: F) -> F:
    """`--ssh` and `--ijfs`."""
    function = click.option(
        "--ijfs", "program", metavar="PATH", default="ijfs", help="What ijfs is called there (default: ijfs)."
    )(function)
    return click.option("--ssh", "transport", metavar="COMMAND", default=SSH, help="How to get there (default: ssh).")(
        function
    )


class FarHost:
    """The other machine."""

    def __init__(self, transport: str, host: str, program: str) -> None:
        self.host = host
        self._command = [*shlex.split(transport), host]
        self._program = program

    def run(self, *words: str, said: str = "", may_refuse: bool = False) -> dict[str, Any]:
        """What a verb prints there with --json; `said` is its standard input. AnsweredError where it failed (with
        `may_refuse`, exit code 12 is no failure), UnreachableError where there is no answer."""
        line = " ".join([self._program, *map(shlex.quote, words), "--json"])
        try:
            done = subprocess.run([*self._command, line], input=said, capture_output=True, text=True, check=False)
        except OSError as error:
            raise AnsweredError(f"{self._command[0]} does not run: {error.strerror}") from error
        answer = self._answer(words[0], done)
        if "error" in answer:
            raise _failed(self.host, answer["error"])
        if done.returncode and not (may_refuse and done.returncode == REFUSED):
            raise AnsweredError(f"`ijfs {words[0]}` on {self.host} failed with exit code {done.returncode}")
        return answer

    def _answer(self, verb: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        try:
            answer = json.loads(done.stdout)
            if isinstance(answer, dict) and done.returncode != _OPENS_NOTHING:
                return answer
        except ValueError:
            pass
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        # A shell there that finds no ijfs, or an ijfs that does not know the verb, has done nothing.
        kind = AnsweredError if done.returncode in (2, 126, 127) else UnreachableError
        raise kind(f"`ijfs {verb}` on {self.host} said: {said}",
                   hint="`--ijfs PATH` names ijfs there, `--ssh` how to get there")  # fmt: skip

    def fits(self, app: App, snapshot: str) -> Sequence[CheckResult]:
        """Whether a snapshot would come back there, by what it needs alone."""
        import msgspec

        from ijfs.live.checks.result import CheckResult
        from ijfs.live.machine import needs

        needed = needs.encode(needs.of_snapshot(app.repository_path, snapshot))
        found = self.run("doctor", "--needs", said=needed, may_refuse=True)
        return msgspec.convert(found["verdicts"], list[CheckResult])


def _failed(host: str, said: dict[str, Any]) -> AnsweredError:
    error = AnsweredError(f"on {host}: {said['message']}", hint=said.get("hint"))
    error.kind = said["type"]
    return error
