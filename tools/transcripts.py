#!/usr/bin/env python3
"""Commands that a page of the documentation shows, typed as its reader would.

    tools/transcripts.py PAGE…            type the pages and put in what the commands print now
    tools/transcripts.py --svg PAGE OUT   draw the transcripts of one page as a terminal that is being typed in

A block whose lines begin with `$ ` is a transcript: commands, each with what it printed. What stands right before a
block, as a comment of HTML, says more:

    <!-- file: ~/rides/work.py -->     the block is that file's content
    <!-- run -->                       the block is a script without its output
    <!-- cell: lab -->                 the block is a cell of the kernel `lab`
    <!-- typed: ijfs init -->          no block: a command that the reader has typed before, on another page

Blocks without any of these are not run. A command that is shown without output may print something. Output is compared
by shape: a number is a number, an id an id, whatever time, size or process id a run had.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_BLOCK = re.compile(
    r"^<!-- typed: (?P<typed>[^\n]+) -->$|"
    r"(?:^<!-- (?P<what>file|run|cell)(?:: (?P<name>\S+))? -->\n+)?"
    r"(?:^```[a-z]*\n(?P<fenced>.*?)^```$|(?P<indented>(?:^ {4}[^\n]*\n|^\n(?=\n* {4}))+))",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(r"^\$ (?P<command>.*(?:\n> .*)*)\n?(?P<output>(?:(?!\$ ).*\n?)*)", re.MULTILINE)
_END = "--- that was all, with "
_COMING_IN = re.compile(r"^ *N% of its memory is in, the rest follows")
"""A line that stands only where a restore was not over before it was told."""


@dataclass(frozen=True)
class Step:
    """One thing that a reader does: `what` is done with `text`, which then prints `output` (None: not compared)."""

    what: Literal["command", "file", "cell"]
    text: str
    name: str = ""
    output: str | None = None


def _text(block: re.Match[str]) -> str:
    return block["fenced"] or re.sub(r"^ {4}", "", block["indented"] or "", flags=re.MULTILINE).strip("\n") + "\n"


def _is_transcript(block: re.Match[str]) -> bool:
    return block["what"] is None and block["typed"] is None and _text(block).startswith("$ ")


def _transcript(text: str) -> Iterator[Step]:
    for shown in _COMMAND.finditer(text):
        yield Step("command", shown["command"].replace("\n> ", "\n"), output=shown["output"].strip("\n") or None)


def _steps(block: re.Match[str]) -> Iterator[Step]:
    if block["typed"] is not None:
        yield Step("command", block["typed"])
        return
    text = _text(block)
    match block["what"]:
        case "file":
            yield Step("file", text, block["name"])
        case "cell":
            yield Step("cell", text, block["name"])
        case "run":
            yield from (Step("command", line) for line in text.splitlines() if line and not line.startswith("#"))
        case _ if _is_transcript(block):
            yield from _transcript(text)


def steps(page: str) -> Iterator[Step]:
    """What a page has its reader do, in order."""
    for block in _BLOCK.finditer(page):
        yield from _steps(block)


def shown(page: str) -> Iterator[str]:
    """The lines of a page's blocks, whatever they are."""
    for block in _BLOCK.finditer(page):
        if block["typed"] is None:
            yield from _text(block).splitlines()


def shape(output: str) -> list[str]:
    """The lines of an output without what differs from run to run."""
    text = re.sub(r"\b[0-9a-f]{10,64}\b", "ID", output)
    text = re.sub(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"\b(?:now|just now)\b|\b[\d.]+ ?(?:s|min|h|d|ms)\b", "AGE", text)
    text = re.sub(r"\b[\d.,]+ ?(?:B|[kMGT]i?B)(?:/s)?", "SIZE", text)
    text = re.sub(r"(?<![\w.~-])\d[\d,.]*(?![\w-])", "N", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if line and not _COMING_IN.match(line)]


class Reader:
    """A shell in which pages are typed. `home` is the reader's home, which a page shows as /root; what it calls /backup
    is in there, too, and so is its bucket, which is a directory."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self._home = home
        self._backup = home / "backup"
        self.environment = {**os.environ, **environment, "HOME": str(home)}
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=home,
            env=self.environment,
        )

    def do(self, step: Step) -> str:
        """What it printed. AssertionError if a command failed."""
        if step.what == "file":
            there = Path(step.name.replace("~", str(self._home), 1))
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_text(step.text)
            return ""
        if step.what == "cell":
            return self._type(f"ijfs exec {step.name} - <<'END OF CELL'\n{step.text}END OF CELL")
        text = step.text.replace("s3://my-bucket", "file:///root/bucket")
        return self._type(text.replace("/root", str(self._home)).replace("/backup", str(self._backup)))

    def _type(self, command: str) -> str:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null; echo {shlex.quote(_END)}$?\n")
        self._shell.stdin.flush()
        printed = []
        for line in self._shell.stdout:
            said, end, status = line.partition(_END)
            printed.append(said)
            if end:
                output = "".join(printed).replace(str(self._backup), "/backup").replace(str(self._home), "/root")
                assert int(status) == 0, f"$ {command}\n{output}exit code {status.strip()}"
                return output
        raise AssertionError(f"$ {command}\nended the shell:\n{''.join(printed)}")

    def close(self) -> None:
        """End the shell."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(30)
        assert self._shell.stdout is not None
        self._shell.stdout.close()


@contextmanager
def new_reader(**environment: str) -> Iterator[Reader]:
    """A reader with a home of his own, whose programs and files are gone afterwards.

    The home is not below /tmp: that is a volume of its own in a sandbox.
    """
    commands = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="ijfs-docs-", dir="/var/tmp") as made:
        home = Path(made)
        places = {"XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state", "XDG_CONFIG_HOME": ".config"}
        own = {name: str(home / place) for name, place in places.items()}
        own |= {"JUPYTER_DATA_DIR": str(home / ".local/share/jupyter"), "IJFS_REPO": "", "IJFS_SPARE_S": "0"}
        own |= {"COLUMNS": "100", "PATH": f"{commands}:{os.environ['PATH']}"}
        reader = Reader(home, own | environment)
        try:
            yield reader
        finally:
            reader.close()
            for live in (home / ".local/share/ijfs/live", *home.glob("backup/*/live")):
                stop = [str(commands / "ijfs"), "-r", str(live.parent), "stop", "--all", "--rm"]
                subprocess.run(stop, env=reader.environment, capture_output=True, check=False)


def retyped(page: str, reader: Reader) -> str:
    """The page with what its commands print now. AssertionError if a command failed."""
    result, end = [], 0
    for block in _BLOCK.finditer(page):
        typed = [(step, reader.do(step)) for step in _steps(block)]
        if _is_transcript(block):
            lines = []
            for step, printed in typed:
                lines += ["$ " + step.text.replace("\n", "\n> ")]
                lines += [printed.rstrip("\n")] if step.output is not None else []
            text = "\n".join("    " + line if line else "" for line in "\n".join(lines).split("\n")) + "\n"
            before, after = re.match(r"\n*", block[0]), re.search(r"\n*$", block[0].removesuffix("\n"))
            result += [page[end : block.start()], before[0] if before else "", text, after[0] if after else ""]
            end = block.end()
    return "".join(result) + page[end:]


# --- The drawing

_WIDTH = 96
_PROMPT, _ANSI = "\x1b[1;32m$\x1b[0m ", re.compile(r"\x1b\[[0-9;]*m")
_STEP_S, _LETTER_S = 1.1, 0.03
_FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
@keyframes typed {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#282c34" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def _screen(page: str) -> tuple[str, list[float]]:
    """What a terminal shows when a page's transcripts are typed in it, and when each of its lines appears, in s."""
    lines: list[str] = []
    times: list[float] = []
    now = 0.5
    with new_reader(FORCE_COLOR="1", COLUMNS=str(_WIDTH)) as reader:
        for block in _BLOCK.finditer(page):
            for step in _steps(block):
                printed = reader.do(step)
                if _is_transcript(block):
                    now += _LETTER_S * len(step.text)
                    shown = [_PROMPT + step.text, *(printed.rstrip("\n").split("\n") if printed.strip() else [])]
                    lines += shown
                    times += [now] * len(shown)
                    now += _STEP_S
    return "\n".join(lines), times


def draw(page: str, title: str) -> str:
    """An SVG of a terminal, line by line as it appears."""
    from rich.console import Console
    from rich.terminal_theme import DIMMED_MONOKAI
    from rich.text import Text

    screen, times = _screen(page)
    console = Console(record=True, width=_WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(screen), no_wrap=True, crop=True)
    svg = console.export_svg(title=title, theme=DIMMED_MONOKAI, code_format=_FRAME, unique_id="tour")

    def appears(found: re.Match[str]) -> str:
        line = min(int(found[1]), len(times) - 1)
        return f'{found[0]} style="animation: typed 0.2s {times[line]:.1f}s both"'

    return re.sub(r'clip-path="url\(#tour-line-(\d+)\)"', appears, svg)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", action="store_true")
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    if options.svg:
        page, out = options.paths
        out.write_text(draw(page.read_text(), "ijfs"))
        return
    for path in options.paths:
        with new_reader() as reader:
            path.write_text(retyped(path.read_text(), reader))


if __name__ == "__main__":
    main()
