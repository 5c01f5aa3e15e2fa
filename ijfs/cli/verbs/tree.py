"""`ijfs tree`: the picture of a repository. `ijfs.drawing` draws it; this gives it colours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ijfs.cli import instances, text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer, Span
from ijfs.cli.params import ANY, needless
from ijfs.drawing import tree as drawing
from ijfs.history.scene import Scene

if TYPE_CHECKING:
    from ijfs_engine import Repository

STYLES = {
    **{f"lane{i}": style for i, style in enumerate(("cyan", "magenta", "blue", "yellow", "green", "red"))},
    "id": "yellow",
    "branch": "bold green",
    "tag": "bold magenta",
    "live": "bold green",
    "dim": "dim",
    "strong": "bold",
}
"""How a terminal shows what the drawing means."""


@verb("tree")
@click.argument("name", required=False, type=ANY)
@click.option("-a", "--all", "every", is_flag=True, help="Draw long stretches whole.")
@click.option("--ascii", "plain", is_flag=True, help="No line-drawing characters.")
@needless("--graph", "--oneline")
def tree(app: App, name: str | None, every: bool, plain: bool) -> Answer:
    """Draw snapshots, [branches], (tags) and live programs (▶). Time runs down; a fork branches off to the right.

    With NAME, a snapshot or a live program, only the tree that it is in. HOLDS is all memory and files of a snapshot,
    NEW what storing it took on disk. What only it needs now is what `ijfs du` says. Many branches of one name are drawn
    as one line unless --all.
    """
    scene = look(app)
    if name is not None:
        scene = _tree_of(scene, app.repository(), name)
    data = {
        "path": scene.path,
        "snapshots": [scene.json(s) for s in scene.history.snapshots.values()],
        "instances": [instances.instance_json(info) for info in scene.live],
        "total": {"logical": scene.logical, "stored": scene.stored},
    }
    return Answer(data, lambda out: paint(out, scene, fold=not every, ascii_only=plain))


def look(app: App) -> Scene:
    """Read what the picture shows: snapshots, names, sizes, live programs."""
    from ijfs.live.client.api import list_instances

    live = [info for info in list_instances(app.repository_path) if info.status != "exited"]
    return Scene.of(app.repository(), live)


def _tree_of(scene: Scene, repository: Repository, name: str) -> Scene:
    """The tree that a live program or a snapshot is in. UnknownNameError."""
    standing = [info.snapshot for info in scene.live if info.name == name]
    if standing:
        return scene.around([bytes.fromhex(s) for s in standing if s is not None], [name])
    return scene.around([repository.resolve(name)])


def paint(out: Printer, scene: Scene, *, fold: bool = True, ascii_only: bool = False) -> None:
    """The picture; on a terminal with what to type next below it."""
    unicode = out.unicode and not ascii_only
    for line in drawing.picture(_shown(scene), width=out.width, unicode=unicode, fold=fold):
        spans: list[Span] = [(content, STYLES.get(style, "")) for content, style in line]
        out.line(*spans)
    if not scene.history.snapshots and not scene.live:
        out.line(("nothing here yet: `ijfs run` or `ijfs kernel start`, then `ijfs save`; or `ijfs import`", "dim"))
    elif out.terminal:
        _legend(out, scene)


def _shown(scene: Scene) -> drawing.Scene:
    return replace(scene.drawn(), path=text.place(scene.path))


def _legend(out: Printer, scene: Scene) -> None:
    """How to go on from what is drawn: with a name that is on it."""
    named = [name for names in scene.history.labels.branches.values() for name in names]
    live = next((info.name for info in scene.live if info.name in named), None)
    if live is not None:
        out.line()
        said = f"back: ijfs restore {live}~1 --replace · files: ijfs ls {live} · a copy beside it: ijfs fork {live}"
        out.line((text.clip(said, out.width or len(said)), "dim"))
    elif named:
        out.line()
        out.line((text.clip(f"to life again: ijfs restore {named[0]}", out.width or 80), "dim"))


COMMANDS = {"tree": tree}
