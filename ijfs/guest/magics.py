"""The magics `%ijfs` and `%%ijfs try`: what a program does to itself, from a notebook cell.

Loaded by `%load_ext ijfs`, which hands in the shell; IPython is the program's own.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

from ijfs.drawing import tree
from ijfs.drawing.render import Drawing, as_text
from ijfs.guest import acts, port, saving

USAGE = """\
%ijfs save [-m MESSAGE]   save this program as a snapshot; returns again, resumed, in every restored child
                          (--verify: and try whether it can be restored)
%ijfs undo                go back to before the last cell; what is now is saved first
%ijfs restore SNAPSHOT    go back to a snapshot in place; what is now is saved first
%ijfs fork [N]            make N live copies of this program, which go on from here, each on its own
%ijfs log                 the repository's snapshots, newest first
%ijfs tree                the same as a picture; @ marks where this program is
%ijfs status              this program's name, repository and last snapshot
%ijfs tag|branch NAME [SNAPSHOT]     give a snapshot a name
%ijfs show|diff|du SNAPSHOT …        what one is, what differs between two, what they take on disk
%ijfs adopt [PATH …]      take home what this program wrote, as it was saved last
%ijfs auto on|off         save after a cell when 5 % of the memory changed or 300 s went by since the last save, unless
                          the program would stand still for more than 2 s
                          (auto on --changed PERCENT --every SECONDS --limit SECONDS)
%%ijfs try [--keep]       first line of a cell: save, run the cell, go back if it raises
                          (--keep: a save that is not thinned out)"""

OUTSIDE = {
    "ps": "ijfs ps",
    "cp": "ijfs cp NAME:FILE .",
    "stop": "ijfs stop NAME",
    "rm": "ijfs rm NAME",
}
"""What a program cannot do to itself, and where it is done."""

HANDED_ON = ("tag", "branch", "show", "diff", "du")
"""Verbs of the command line that the keeper has run outside, as they were typed."""

NOTHING_YET = "no snapshots yet: `%ijfs save` makes one"

AUTO_VARIABLE = "IJFS_AUTO"
"""Set by the Jupyter provisioner to what stands behind `auto on`: saving after cells begins with the kernel."""

VERIFY = "--verify"

AUTO_OPTIONS = {"--every": "every_s", "--changed": "changed", "--limit": "limit_s"}


class AutosaveState:
    """Tells the keeper after each cell that it has ended; whether that is worth a save, the keeper decides, later. The
    next cell waits for one exchange over loopback, and stands still with everything else where there is a save."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.wishes: dict[str, float] = {}
        self._on = False

    def turn(self, on: bool) -> None:
        """Begin or stop saving after cells."""
        if on and not self._on:
            self.shell.events.register("post_run_cell", self._after_cell)
        if not on and self._on:
            self.shell.events.unregister("post_run_cell", self._after_cell)
        self._on = on

    def _after_cell(self, result: Any) -> None:
        count = getattr(result, "execution_count", None) or getattr(self.shell, "execution_count", 1) - 1
        try:
            answer = port.ask({"verb": "cell", "message": f"auto: after In [{count}]", **self.wishes})
        except port.NoAnswer:
            return  # a freeze cut the connection, or there is no keeper just now: after the next cell, then
        except port.GuestError as error:
            answer = {"note": str(error)}
        if answer.get("note"):
            print(f"ijfs auto: {answer['note']}")


class Magic:
    """`%ijfs VERB …`: one method a verb, each printing what it has to say."""

    def __init__(self, shell: Any) -> None:
        self.auto = AutosaveState(shell)
        self.verbs: dict[str, Callable[[list[str]], None]] = {
            "save": _save,
            "log": _log,
            "tree": _tree,
            "status": _status,
            "auto": self._auto,
            "undo": _undo,
            "restore": _restore,
            "fork": _fork,
            "adopt": _adopt,
            **{verb: partial(_handed_on, verb) for verb in HANDED_ON},
        }
        self._shell = shell

    def __call__(self, line: str, cell: str | None = None) -> None:
        """The line magic, or with `cell` the cell magic. A wrong use is an error, so that "run all" stops there;
        without IPython's traceback: the sentence says it all."""
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise _quiet(f"{error} in: %ijfs {line}") from None
        if cell is not None:
            return self._try(words, cell)
        if not words:
            return print(USAGE)
        if words[0] in OUTSIDE:
            raise _quiet(f"%ijfs {words[0]} works in a terminal of the machine: `{OUTSIDE[words[0]]}`")
        if words[0] not in self.verbs:
            raise _wrong(f"unknown verb {words[0]!r}")
        try:
            self.verbs[words[0]](words[1:])
        except port.GuestError as error:
            raise _quiet(error) from None
        return None

    def _try(self, words: list[str], cell: str) -> None:
        if words not in (["try"], ["try", "--keep"]):
            raise _wrong("a cell begins with %%ijfs try, or %%ijfs try --keep")
        try:
            before = saving.save("before a try", auto="--keep" not in words)
            if before.resumed:
                print(f"went back to {before.name}, to before this cell")
                return
            done = self._shell.run_cell(cell)
            if not done.success:
                acts.back(before.id, save_first=False)
        except port.GuestError as error:
            raise _quiet(error) from None

    def _auto(self, words: list[str]) -> None:
        wishes = auto_wishes(words[1:]) if words[:1] == ["on"] else {} if words == ["off"] else None
        if wishes is None:
            options = " ".join(f"[{option} NUMBER]" for option in AUTO_OPTIONS)
            raise _wrong(f"%ijfs auto off, or on {options}, not {' '.join(words)!r}")
        on = words[0] == "on"
        if on:
            # Says at once when there is no keeper, or when it does not like a number.
            port.ask({"verb": "cell", "dry": True, **wishes})
        self.auto.wishes = wishes
        self.auto.turn(on)
        print(f"auto: {' '.join(words)}")


def auto_wishes(words: list[str]) -> dict[str, float] | None:
    """What stands behind `auto on`, as the keeper takes it; None for what cannot be read."""
    wishes = {}
    for option, value in zip(words[::2], words[1::2]):  # noqa: B905 - `strict` came with Python 3.10
        if option not in AUTO_OPTIONS or not _is_number(value):
            return None
        wishes[AUTO_OPTIONS[option]] = float(value) / (100 if option == "--changed" else 1)
    return wishes if len(words) % 2 == 0 else None


def load(shell: Any) -> None:
    """Register `%ijfs` with an IPython shell, and begin to save after cells where the environment says so. A second
    load changes nothing."""
    if "ijfs" in shell.magics_manager.magics["line"]:
        return
    magic = Magic(shell)
    shell.register_magic_function(magic, "line_cell", "ijfs")
    words = os.environ.get(AUTO_VARIABLE)
    if words is not None and port.in_sandbox():
        magic.auto.wishes = auto_wishes(words.split()) or {}
        magic.auto.turn(True)


def unload(shell: Any) -> None:
    """Remove `%ijfs` and stop saving after cells."""
    magic = shell.magics_manager.magics["line"].pop("ijfs", None)
    shell.magics_manager.magics["cell"].pop("ijfs", None)
    if isinstance(magic, Magic):
        magic.auto.turn(False)


def _save(words: list[str]) -> None:
    verify = VERIFY in words
    message = _message([word for word in words if word != VERIFY])
    if message is None:
        raise _wrong("%ijfs save [--verify] [-m MESSAGE]")
    print(saving.save(message, verify=verify))


def _message(words: list[str]) -> str | None:
    """The message of `save`: after -m or --message, quoted or not; "" without one, None when it cannot be read."""
    if not words:
        return ""
    if words[0] in ("-m", "--message") and len(words) > 1:
        return " ".join(words[1:])
    return None


def _log(words: list[str]) -> None:
    scene = tree.Scene.of_answer(port.ask({"verb": "log"}))
    print(as_text(tree.log_lines(scene)) if scene.snapshots else NOTHING_YET)


def _tree(words: list[str]) -> None:
    scene = tree.Scene.of_answer(port.ask({"verb": "log"}))
    if not scene.snapshots:
        print(NOTHING_YET)
        return
    import IPython.display

    show: Any = IPython.display.display
    show(Drawing(tree.picture(scene)))


def _status(words: list[str]) -> None:
    answer = port.ask({"verb": "status"})
    print(f"program     {answer.get('instance')}")
    print(f"repository  {answer.get('repository')}")
    print(f"snapshot    {answer.get('snapshot') or 'none yet'}")


def _undo(words: list[str]) -> None:
    if words:
        raise _wrong("%ijfs undo takes nothing: `%ijfs restore SNAPSHOT` goes back to one")
    acts.undo()
    print("forward again, to before it went back")


def _restore(words: list[str]) -> None:
    if len(words) != 1:
        raise _wrong("%ijfs restore SNAPSHOT")
    acts.back(words[0])
    print("forward again, to before it went back")


def _fork(words: list[str]) -> None:
    if len(words) > 1 or not all(word.isdecimal() for word in words):
        raise _wrong("%ijfs fork [N]")
    forked = acts.fork(int(words[0]) if words else 1)
    if forked:
        print(f"this is {forked.name}, copy {int(forked)}")
    else:
        print(f"copies: {', '.join(forked.names)}")


def _adopt(words: list[str]) -> None:
    """What the program wrote is taken from its last snapshot's name: its own."""
    own = str(port.ask({"verb": "status"}).get("instance", ""))
    options = [word for word in words if word.startswith("-")]
    _handed_on("adopt", [*options, own, *(word for word in words if not word.startswith("-"))])


def _handed_on(verb: str, words: list[str]) -> None:
    code, out, err = acts.outside([verb, *words])
    if out:
        print(out, end="")
    if code:
        raise port.GuestError((err or f"ijfs {verb} failed").strip().removeprefix("ijfs: "))
    if err:
        print(err, end="")


def _wrong(problem: str) -> Exception:
    """A wrong use, with what can be used."""
    return _quiet(f"{problem}\n{USAGE}")


def _is_number(word: str) -> bool:
    return word.replace(".", "", 1).isdecimal()


def _quiet(error: port.GuestError | str) -> Exception:
    """IPython prints a UsageError without a traceback; anywhere else the error stays what it is."""
    try:
        from IPython.core.error import UsageError
    except ImportError:
        return error if isinstance(error, Exception) else ValueError(error)
    quiet: Exception = UsageError(str(error))
    return quiet
