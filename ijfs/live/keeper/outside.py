"""What a program asks of its keeper that is done outside: in the mount namespace of the machine, by a process of its
own. Called by guest_requests.py.

A keeper has a mount namespace of its own, and what it starts would have it, too: other keepers could not be asked for
from there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ijfs.live.errors import KeeperError, ProtocolError
from ijfs.live.sandbox import namespaces

ALLOWED = {
    "adopt": frozenset({"-n", "--dry-run", "--ours", "--theirs"}),
    "branch": frozenset({"-v"}),
    "diff": frozenset({"--files", "--memory", "-p", "--patch", "-v"}),
    "du": frozenset({"-v"}),
    "show": frozenset({"-v"}),
    "tag": frozenset({"-v"}),
}
"""Verbs with their options that a program may ask for: they look, or give names. Nothing that removes: a
program is not trusted with what others saved."""

TERMINAL = "a terminal of the machine can"
LIMIT_S = 600.0


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def checked(words: Sequence[str]) -> None:
    """ProtocolError for what a program may not ask for."""
    verb, *rest = words or [""]
    if verb not in ALLOWED:
        raise ProtocolError(f"a program cannot ask its keeper for `ijfs {verb}`", hint=TERMINAL)
    for word in rest:
        if word.startswith("-") and word.partition("=")[0] not in ALLOWED[verb] | {"--json"}:
            raise ProtocolError(
                f"a program cannot give `{word}` to `ijfs {verb}`", hint="a terminal of the machine can"
            )


def about_itself(words: Sequence[str], name: str) -> Sequence[str]:
    """The words, with the program's name where a verb that looks at programs is given none: others live, too."""
    alone = words[0] == "diff" and all(word.startswith("-") for word in words[1:])
    return [*words, name] if alone else words


def run(repo: Path, words: Sequence[str], columns: int) -> Outcome:
    """Run a verb of the command line outside. Blocks."""
    return _started("ijfs.cli", ["-r", str(repo), *words], columns)


def fork(repo: Path, snapshot: str, wish: str, count: int, secrets: Mapping[str, str]) -> list[str]:
    """Make live copies of a snapshot, with the secrets of the program that wants them; their names. Blocks; KeeperError
    with what stood in the way."""
    done = _started(
        "ijfs.live.client.numbered_forks", [str(repo), snapshot, wish, str(count)], 100, json.dumps(dict(secrets))
    )
    if done.code:
        raise KeeperError(f"the copies could not be made: {done.err.strip() or done.code}")
    return done.out.split()


def _started(module: str, words: Sequence[str], columns: int, given_in: str = "") -> Outcome:
    mounts = namespaces.machine_mounts
    inside = ("IJFS_GUEST", "IJFS_INSTANCE")
    given = {name: value for name, value in os.environ.items() if name not in inside}
    done = subprocess.run(
        ["nsenter", f"--mount=/proc/self/fd/{mounts}", sys.executable, "-P", "-m", module, *words],
        pass_fds=[mounts],
        env={**given, "COLUMNS": str(columns)},
        cwd="/",
        input=given_in,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
