"""`ijfs` typed inside a sandbox, as in `!ijfs tree` of a notebook: what its keeper can do is done, the rest is refused.

The repository is outside. What a sandbox's overlay shows of it is some earlier state, and what is written there reaches
nobody. Who names another repository by -r means that one, and is served as anywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from ijfs.cli import text
from ijfs.cli.output import Answer, Printer
from ijfs_engine.errors import IjfsError, PreflightError

if TYPE_CHECKING:
    from ijfs.cli.app import App
    from ijfs.drawing.tree import Scene

ANYWHERE = ("completion", "config")
"""Verbs that need no repository."""

HERE = (
    "in here there are `ijfs save`, `log`, `tree`, `ps`, `tag`, `branch`, `show`, `diff`, `du`; in a notebook `%ijfs`"
)
HANDED_ON = ("tag", "branch", "show", "diff", "du")
"""Verbs that the keeper has run outside, as they were typed."""


def answered(app: App, verb: str, given: Mapping[str, Any]) -> Answer | None:
    """What the keeper says to a verb; None for a verb that is the same everywhere. PreflightError for all others."""
    if verb in ANYWHERE:
        return None
    from ijfs.guest.port import GuestError

    name = os.environ.get("IJFS_INSTANCE", "")
    try:
        verbs: dict[str, Callable[[], Answer]] = {
            "save": lambda: _save(app, name, given),
            "log": _log,
            "tree": lambda: _tree(app, given),
            "ps": _ps,
        }
        if verb in HANDED_ON:
            return _handed_on()
        return verbs[verb]() if verb in verbs else _refuse(verb, name)
    except GuestError as error:
        raise IjfsError(str(error)) from None


def _refuse(verb: str, name: str) -> NoReturn:
    where = f"inside the sandbox of `{name}`" if name else "inside a sandbox"
    raise PreflightError(f"this is {where}: `ijfs {verb}` works in a terminal of the machine", hint=HERE)


def _handed_on() -> Answer:
    """The words as they were typed: the verb outside reads them itself."""
    from ijfs.guest import acts

    code, out, err = acts.outside(sys.argv[1:])
    sys.stderr.write(err)
    return Answer({}, lambda printer: print(out, end=""), code)


def _save(app: App, name: str, given: Mapping[str, Any]) -> Answer:
    from ijfs.guest import port, saving

    asked = {key for key, value in given.items() if value and key not in ("name", "message", "no_wait")}
    if asked or app.json:
        raise PreflightError("inside a sandbox `ijfs save` takes a message, and --no-wait", hint=HERE)
    own = str(port.ask({"verb": "status"}).get("instance", name))
    if given.get("name") not in (None, own):
        raise PreflightError(
            f"this is inside the sandbox of `{own}`, which can save itself and nothing else", hint=HERE
        )
    result = saving.save(str(given.get("message", "")), wait=not given.get("no_wait"))
    return Answer({}, lambda out: out.line(str(result)))


def _scene() -> Scene:
    from ijfs.drawing.tree import Scene
    from ijfs.guest import port

    return Scene.of_answer(port.ask({"verb": "log"}))


def _log() -> Answer:
    from ijfs.drawing import tree

    scene = _scene()
    data = [
        {
            "id": snap.id,
            "parents": list(snap.parents),
            "created": text.iso(snap.created_ns),
            "created_ns": snap.created_ns,
            "message": snap.message,
            "branches": list(snap.branches),
            "tags": list(snap.tags),
        }
        for snap in scene.snapshots
    ]
    return Answer({"snapshots": data}, lambda out: _print(out, tree.log_lines(scene)))


def _tree(app: App, given: Mapping[str, Any]) -> Answer:
    from ijfs.drawing import tree

    if app.json:
        raise PreflightError("inside a sandbox `ijfs tree` is a picture only; `ijfs log --json` lists", hint=HERE)
    scene = _scene()
    every, plain = bool(given.get("every")), bool(given.get("plain"))

    def show(out: Printer) -> None:
        unicode = out.unicode and not plain
        _print(out, tree.picture(scene, width=out.width, unicode=unicode, fold=not every))

    return Answer({}, show)


def _ps() -> Answer:
    from ijfs.guest import port

    found = port.ask({"verb": "status"})
    snapshot = found.get("snapshot")
    stands = f"stands on {snapshot[: text.SHORT_ID]}" if snapshot else "was not saved yet"
    line = f"this is `{found.get('instance')}` of {found.get('repository')}; it {stands}"
    others = sorted((one.name for one in _scene().live), key=text.natural)

    def show(out: Printer) -> None:
        out.line(line)
        out.line((f"live: {text.listing(others)}; a terminal of the machine says more", "dim"))

    return Answer({"instance": found.get("instance"), "snapshot": snapshot, "live": others}, show)


def _print(out: Printer, lines: list[list[tuple[str, str]]]) -> None:
    from ijfs.cli.verbs.tree import STYLES

    for line in lines:
        out.line(*[(content, STYLES.get(style, "")) for content, style in line])
