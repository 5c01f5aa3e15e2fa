"""`ijfs demo`."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ijfs.cli import text
from ijfs.cli.app import App, verb
from ijfs.cli.output import Answer, Printer

if TYPE_CHECKING:
    from ijfs.cli.demo.stage import Stage

NEXT = (
    ("ijfs init", "a repository of your own"),
    ("ijfs kernel start --name lab", "or: ijfs run -- python train.py"),
    ("ijfs demo -v", "the same with every command; docs/guide.md goes on"),
)
"""What to type next."""

_IMPORTED = ("ipykernel", "numpy", "pandas")
"""What the demo's kernel and its cells (`ijfs.cli.demo.code`) need."""


@verb("demo")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Perform in DIR and leave the repository there (default: a temporary directory, gone at the end).",
)
def demo(app: App, keep: Path | None) -> Answer:
    """Watch ijfs work on a real kernel: save, fork, kill, restore, mount, gc. Takes about a minute; -v shows every
    command, cell and picture on the way.

    Everything that is said is checked, and the exit code is 1 if any of it does not hold. At the end nothing is
    left: no process, mount, namespace or temporary file.
    """
    from ijfs.cli.demo import story
    from ijfs.cli.demo.leftovers import Watch
    from ijfs.cli.demo.stage import Narrator, Stage

    _preflight()
    began = time.monotonic()
    narrator = Narrator(Printer(), silent=app.json or app.quiet > 0, brief=app.verbose == 0)
    if narrator.brief and not narrator.silent:
        narrator.out.line(
            "a real kernel in a sandbox, 260 MB of data, a repository of its own; what is said was checked:"
        )
        narrator.out.stream.flush()
    with _directory(keep) as directory, Watch(directory) as watch:
        stage = _perform(Stage(directory, narrator, watch))
        story.prove_tidy(stage)
        if keep is None:
            shutil.rmtree(directory)
        story.prove_clean(stage, kept=keep is not None)
    took = time.monotonic() - began
    data = {**story.summary(stage, took), "repository": str(stage.repository) if keep else None}
    held = all(claim.held for claim in stage.claims)
    return Answer(data, lambda out: _conclude(out, stage, took, kept=keep is not None), 0 if held else 1)


def _conclude(out: Printer, stage: Stage, took: float, *, kept: bool) -> None:
    failed = [claim for claim in stage.claims if not claim.held]
    out.line()
    if failed:
        out.line((f"{len(failed)} of {text.count(len(stage.claims), 'claim')} did not hold:", "bold red"))
        for claim in failed:
            out.line("  ", claim.claim)
    else:
        done = f"all {text.count(len(stage.claims), 'claim')} held"
        out.line((done, "bold green"), f", in {text.seconds(took)}; nothing is left behind")
        for command, why in NEXT:
            out.line(f"  {command:<32}", (why, "dim"))
    if kept:
        out.line("the repository stays: ", (f"ijfs -r {stage.repository} tree", "bold"))


def _preflight() -> None:
    """Refuse before anything is begun where doctor sees that it cannot work, or the kernel lacks what the cells
    import. PreflightError."""
    from importlib.util import find_spec

    from ijfs.live import doctor
    from ijfs.live.checks.result import CheckResult, require

    verdicts = doctor.machine(Path(tempfile.gettempdir()))
    missing = [name for name in _IMPORTED if find_spec(name) is None]
    if missing:
        remedy = "install the extra of the demo: pip install 'ijfs[demo]'"
        evidence = f"{', '.join(missing)} cannot be imported"
        verdicts.append(CheckResult(check="packages", outcome="refuse", evidence=evidence, remedy=remedy))
    require(verdicts)


def _perform(stage: Stage) -> Stage:
    """All steps; whatever happens in them, what they started is ended."""
    from ijfs.cli.demo import story

    stage.scratch.mkdir(parents=True)
    environment = {"XDG_STATE_HOME": str(stage.directory / "state"), "TMPDIR": str(stage.scratch)}
    with _standing_in(stage.desk, environment):
        try:
            for step in story.STEPS:
                step(stage)
            stage.narrator.say("")
        finally:
            story.clear_away(stage)
    return stage


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """The directory of the performance; a temporary one is gone at the end, also after an error."""
    if keep is not None:
        keep = keep.absolute()
        keep.mkdir(parents=True)
        yield keep
        return
    path = Path(tempfile.mkdtemp(prefix="ijfs-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _standing_in(desk: Path, environment: dict[str, str]) -> Iterator[None]:
    """Work where a notebook would, with every scratch and state file inside the demo's own directory."""
    place, before = Path.cwd(), {name: os.environ.get(name) for name in environment}
    os.chdir(desk)
    os.environ.update(environment)
    tempfile.tempdir = None
    try:
        yield
    finally:
        os.chdir(place)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None


COMMANDS = {"demo": demo}
