"""What the demo's steps stand on: verbs called as a person would type them, ordinary tools, cells, and claims.

The narration is here and in `Narrator`; the steps (`story`) do the work.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ijfs.cli.app import App
from ijfs.cli.demo.leftovers import Watch
from ijfs.cli.output import Answer, Printer
from ijfs_engine.errors import IjfsError


@dataclass(frozen=True)
class Claim:
    """Something the demo says, whether it is so, and how that was seen. `minor`: short of -v, a person is told of it
    only where it does not hold."""

    claim: str
    held: bool
    evidence: str
    minor: bool = False


@dataclass
class Narrator:
    """Tells a person what happens: nothing (`silent`, for --json and -q), what was proved (`brief`), or all of it."""

    out: Printer
    silent: bool = False
    brief: bool = False

    @property
    def quiet(self) -> bool:
        """Whether only what was proved is told, or nothing."""
        return self.silent or self.brief

    def chapter(self, number: int, title: str) -> None:
        """The headline of a step."""
        if not self.quiet:
            self.out.line()
            self.out.line((f"{number}. {title}", "bold cyan"))

    def say(self, sentence: str) -> None:
        """A remark in between."""
        if not self.quiet:
            self.out.line(sentence)

    def command(self, *argv: str) -> None:
        """A command line that is about to run."""
        if not self.quiet:
            self.out.line(("$ ", "dim"), (shlex.join(argv), "bold"))
            self.out.stream.flush()

    def cell(self, name: str, code: str) -> None:
        """A cell that is about to run: its first lines."""
        if not self.quiet:
            lines = code.strip().splitlines()
            self.out.line((f"[{name}] ", "green"), lines[0])
            for line in lines[1:]:
                self.out.line((" " * (len(name) + 3) + line, "dim"))
            self.out.stream.flush()

    def text(self, content: str) -> None:
        """Output of a cell or a tool."""
        if not self.quiet:
            for line in content.rstrip("\n").splitlines():
                self.out.line("  ", line)

    def verdict(self, claim: Claim) -> None:
        """A claim that was checked."""
        if not self.silent and not (self.brief and claim.minor and claim.held):
            good, bad = ("✓", "✗") if self.out.unicode else ("ok", "FAILED")
            mark = (good, "bold green") if claim.held else (bad, "bold red")
            self.out.line("  ", mark, f" {claim.claim}", (f"  ({claim.evidence})" if claim.evidence else "", "dim"))
            self.out.stream.flush()


@dataclass
class Stage:
    """One performance: its directory and repository, what was claimed, what has to be cleared away."""

    directory: Path
    narrator: Narrator
    watch: Watch
    claims: list[Claim] = field(default_factory=list)
    mounted: Path | None = None

    @property
    def repository(self) -> Path:
        """The demo's own repository."""
        return self.directory / "repository"

    @property
    def desk(self) -> Path:
        """The directory the kernel is started in, as a notebook would be."""
        return self.directory / "desk"

    @property
    def scratch(self) -> Path:
        """TMPDIR of everything that the demo starts; below the desk, where the sandboxes see it too."""
        return self.desk / ".tmp"

    def ijfs(self, *argv: str) -> dict[str, Any]:
        """Run a verb in this process, print its answer as the command line would, return its JSON data."""
        self.narrator.command("ijfs", *argv)
        answer = self.quietly(*argv)
        if answer.show is not None and not self.narrator.quiet:
            answer.show(self.narrator.out)
        return dict(answer.data)

    def quietly(self, *argv: str) -> Answer:
        """Run a verb and return its answer. IjfsError as the verb raises it."""
        from ijfs.cli.main import cli

        answers: list[Answer] = []
        app = App(repo=self.repository, quiet=1 if self.narrator.silent else 0, listener=answers.append)
        try:
            with app.closing, cli.make_context("ijfs", list(argv), obj=app) as context:
                cli.invoke(context)
        except SystemExit:
            if not answers:  # a signal; else an answer with an exit code of its own, such as a cell that raised
                raise
        return answers[0]

    def cell(self, name: str, code: str, *, show: bool = True) -> str:
        """Run a cell in a live kernel and return what it printed. IjfsError if it raised."""
        if show:
            self.narrator.cell(name, code)
        data = self.quietly("exec", name, "--timeout", "120", "-c", code).data
        if data["status"] != "ok":
            raise IjfsError(f"a cell failed in {name}: {data['error'].strip().splitlines()[-1]}")
        if show:
            self.narrator.text(data["stdout"])
        return str(data["stdout"])

    def tool(self, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run an ordinary program, show what it prints, return how it ended."""
        self.narrator.command(*argv)
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", cwd=cwd, check=False)
        self.narrator.text(done.stdout + done.stderr)
        return done

    def remember(self, instance: Mapping[str, Any]) -> None:
        """Note what a live program must not leave behind."""
        if instance["pid"]:
            self.watch.saw(instance["pid"])

    def claim(self, sentence: str, held: bool, evidence: object = "", *, minor: bool = False) -> None:
        """State something that was just checked; the demo fails if it does not hold."""
        claim = Claim(sentence, bool(held), str(evidence), minor)
        self.claims.append(claim)
        self.narrator.verdict(claim)

    def bytes_on_disk(self) -> int:
        """What the repository's files take, by the filesystem's own count."""
        total = 0
        for folder, _, names in os.walk(self.repository):
            for name in names:
                total += (Path(folder) / name).lstat().st_blocks * 512
        return total


def python() -> str:
    """The interpreter for programs that the demo starts."""
    return sys.executable
