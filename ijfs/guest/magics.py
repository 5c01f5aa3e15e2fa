"""The `%ijfs` line magic: save, log, tree, status and auto from a notebook cell.

Loaded by `%load_ext ijfs`, which hands in the shell; IPython is the program's own.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Any

from ijfs.guest import port, saving
from ijfs.guest.drawing import draw_log, draw_tree

USAGE = """\
%ijfs save [-m MESSAGE]   save this program as a snapshot; returns again, resumed, in every restored child
%ijfs log                 the repository's snapshots, newest first
%ijfs tree                the same as a tree; * marks where this program is
%ijfs status              this program's instance, repository and last snapshot
%ijfs auto on|off         save after each cell, at most once in 30 s (auto on --every SECONDS)"""

AUTO_EVERY_S = 30.0


class Auto:
    """Asks for a save after a cell, when the last one is old enough; never waits for it, so no cell is delayed."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.every_s = AUTO_EVERY_S
        self._last: float | None = None
        self._on = False

    def turn(self, on: bool) -> None:
        """Begin or stop saving after cells."""
        if on and not self._on:
            self.shell.events.register("post_run_cell", self._after_cell)
        if not on and self._on:
            self.shell.events.unregister("post_run_cell", self._after_cell)
        self._on = on

    def _after_cell(self, result: Any) -> None:
        now = time.monotonic()
        # A clock that ran backwards is a child restored on a host that was started later: save.
        if self._last is not None and 0 <= now - self._last < self.every_s:
            return
        self._last = now
        count = getattr(result, "execution_count", None) or getattr(self.shell, "execution_count", 1) - 1
        try:
            port.ask(saving.new_request(f"auto: after In [{count}]"))
        except port.GuestError as error:
            print(f"ijfs auto: not saved: {error}")


class Magic:
    """`%ijfs VERB …`: one method a verb, each printing what it has to say."""

    def __init__(self, shell: Any) -> None:
        self.auto = Auto(shell)
        self.verbs: dict[str, Callable[[list[str]], None]] = {
            "save": _save,
            "log": _log,
            "tree": _tree,
            "status": _status,
            "auto": self._auto,
        }

    def __call__(self, line: str) -> None:
        try:
            words = shlex.split(line)
        except ValueError as error:
            return _usage(f"{error} in: %ijfs {line}")
        if not words or words[0] not in self.verbs:
            return _usage(f"unknown verb {words[0]!r}" if words else None)
        try:
            self.verbs[words[0]](words[1:])
        except port.GuestError as error:
            # Without IPython's traceback: the sentence says it all. Still an error, so that "run all" stops
            # here.
            raise _quiet(error) from None

    def _auto(self, words: list[str]) -> None:
        if len(words) == 3 and words[1] == "--every" and _is_number(words[2]):
            self.auto.every_s = float(words.pop())
            words.pop()
        if words not in (["on"], ["off"]):
            return _usage(f"%ijfs auto on|off [--every SECONDS], not {' '.join(words)!r}")
        if words == ["on"]:
            port.ask({"verb": "status"})  # says at once when there is no keeper
        self.auto.turn(words == ["on"])
        print(f"auto: saves after a cell, at most every {self.auto.every_s:g} s" if words == ["on"] else "auto: off")
        return None


def load(shell: Any) -> None:
    """Register `%ijfs` with an IPython shell; a second load changes nothing."""
    if "ijfs" not in shell.magics_manager.magics["line"]:
        shell.register_magic_function(Magic(shell), "line", "ijfs")


def unload(shell: Any) -> None:
    """Remove `%ijfs` and stop saving after cells."""
    magic = shell.magics_manager.magics["line"].pop("ijfs", None)
    if isinstance(magic, Magic):
        magic.auto.turn(False)


def _save(words: list[str]) -> None:
    message = _message(words)
    if message is None:
        _usage("%ijfs save [-m MESSAGE]")
        return
    print(saving.save(message))


def _message(words: list[str]) -> str | None:
    """The message of `save`: after -m or --message, quoted or not; "" without one, None when it cannot be read."""
    if not words:
        return ""
    if words[0] in ("-m", "--message") and len(words) > 1:
        return " ".join(words[1:])
    return None


def _log(words: list[str]) -> None:
    print(draw_log(port.ask({"verb": "log"}), now_ns=time.time_ns()))


def _tree(words: list[str]) -> None:
    print(draw_tree(port.ask({"verb": "log"}), now_ns=time.time_ns()))


def _status(words: list[str]) -> None:
    answer = port.ask({"verb": "status"})
    print(f"instance    {answer.get('instance')}")
    print(f"repository  {answer.get('repository')}")
    print(f"snapshot    {answer.get('snapshot') or 'none yet'}")


def _usage(problem: str | None) -> None:
    print(f"{problem}\n{USAGE}" if problem else USAGE)


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


def _quiet(error: port.GuestError) -> Exception:
    """IPython prints a UsageError as one line; anywhere else the error stays what it is."""
    try:
        from IPython.core.error import UsageError
    except ImportError:
        return error
    quiet: Exception = UsageError(str(error))
    return quiet
