"""Commands that a page of the documentation shows, run as its reader would type them.

A block whose lines begin with `$ ` is a transcript: commands, each with what it printed. What stands right before a
block, as a comment of HTML, says more:

    <!-- file: ~/rides/work.py -->     the block is that file's content
    <!-- run -->                       the block is a script without its output
    <!-- cell: lab -->                 the block is a cell of the kernel `lab`

Blocks without any of these are not run. A command that is shown without output may print something. Output is compared
by shape: a number is a number, an id an id, whatever time, size or process id a run had.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_BLOCK = re.compile(
    r"(?:^<!-- (?P<what>file|run|cell)(?:: (?P<name>\S+))? -->\n+)?"
    r"(?:^```[a-z]*\n(?P<fenced>.*?)^```$|(?P<indented>(?:^ {4}[^\n]*\n|^\n(?=\n* {4}))+))",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(r"^\$ (.*(?:\n> .*)*)\n?((?:(?!\$ ).*\n?)*)", re.MULTILINE)
_END = "--- that was all, with "
COMING_IN = re.compile(r"^ *N% of its memory is in, the rest follows")
"""A line that stands only where a restore was not over before it was told."""


@dataclass(frozen=True)
class Step:
    """One thing that a reader does: `what` is done with `text`, which then prints `output` (None: not compared)."""

    what: Literal["command", "file", "cell"]
    text: str
    name: str = ""
    output: str | None = None


def steps(page: str) -> Iterator[Step]:
    """What a page has its reader do, in order."""
    for block in _BLOCK.finditer(page):
        text = block["fenced"] or re.sub(r"^ {4}", "", block["indented"] or "", flags=re.MULTILINE).strip("\n") + "\n"
        if block["what"] == "file":
            yield Step("file", text, block["name"])
        elif block["what"] == "cell":
            yield Step("cell", text, block["name"])
        elif block["what"] == "run":
            yield from (Step("command", line) for line in text.splitlines() if line and not line.startswith("#"))
        elif text.startswith("$ "):
            for command in _COMMAND.finditer(text):
                yield Step("command", command[1].replace("\n> ", "\n"), output=command[2].strip("\n") or None)


def shape(output: str) -> list[str]:
    """The lines of an output without what differs from run to run."""
    text = re.sub(r"\b[0-9a-f]{10,64}\b", "ID", output)
    text = re.sub(r"\b(?:now|just now)\b|\b[\d.]+ ?(?:s|min|h|d|ms)\b", "AGE", text)
    text = re.sub(r"\b[\d.,]+ ?(?:B|[kMGT]i?B)(?:/s)?", "SIZE", text)
    text = re.sub(r"(?<![\w.~-])\d[\d,.]*(?![\w-])", "N", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if line and not COMING_IN.match(line)]


class Reader:
    """A shell in which a page is typed. `home` stands for the reader's, and for /root where the page shows that."""

    def __init__(self, home: Path, path: str, environment: Mapping[str, str]) -> None:
        self._home = home
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=home,
            env={**os.environ, **environment, "HOME": str(home), "PATH": f"{path}:{os.environ['PATH']}"},
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
        return self._type(step.text.replace("/root", str(self._home)))

    def _type(self, command: str) -> str:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        # `$` last, so that a comment or a here document at the command's end does not swallow what follows.
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null; echo {shlex.quote(_END)}$?\n")
        self._shell.stdin.flush()
        printed = []
        for line in self._shell.stdout:
            said, end, status = line.partition(_END)
            printed.append(said)
            if end:
                output = "".join(printed).replace(str(self._home), "/root")
                assert int(status) == 0, f"$ {command}\n{output}exit code {status.strip()}"
                return output
        raise AssertionError(f"$ {command}\nended the shell:\n{''.join(printed)}")

    def close(self) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(30)
        assert self._shell.stdout is not None
        self._shell.stdout.close()
