"""What people type for a verb that is called otherwise here: words of git, docker, restic and jupyter.

`ijfs.cli.main` asks before it guesses by spelling. A word that only looks at something is done all the same, under the
verb's own name; for all others the answer is the verb, in one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

DONE_AS = {
    "status": "ps",
    "instances": "ps",
    "programs": "ps",
    "snapshots": "log",
    "history": "log",
    "reflog": "log",
    "list": "log",
    "images": "log",
    "inspect": "show",
    "info": "show",
    "describe": "show",
    "branches": "branch",
    "tags": "tag",
    "kernels": "kernel list",
    "check": "fsck",
    "graph": "tree",
    "df": "du",
    "unmount": "umount",
    "get": "cp",
    "settings": "config",
    "remotes": "remote list",
    "configure": "config",
}
"""Verbs that change nothing, by other words for them. They are done as if they had been typed by their name."""

_SAVE = "`ijfs save NAME -m TEXT` saves a live program"
_BACK = (
    "`ijfs restore NAME --replace` takes a program back to its last snapshot, with `NAME~1` to the one before; "
    "`ijfs log NAME` lists them"
)
_INSIDE = "`ijfs exec NAME -- bash` opens a shell inside a program; `jupyter console --existing FILE` talks to a kernel"
_START = "`ijfs run -- COMMAND` starts a program, `ijfs kernel start` a kernel, `ijfs restore SNAPSHOT` a saved one"
_STOP = "`ijfs stop NAME` ends a program; `ijfs save NAME --stop` saves it first"
_PARK = "`ijfs park NAME` lets it stand still in memory, with `--disk` it is saved and ended; `ijfs wake` undoes both"
_REMOVE = "`ijfs rm NAME` removes a branch, tag or snapshot; `ijfs stop --rm NAME` ends and forgets a program"
_WHOLE = "there is nothing to put together: a snapshot is whole, with all memory and files"
_REMOTE = "`ijfs push` sends branches to a remote, `ijfs fetch` looks what is new there, `ijfs pull` copies it here"

SAID = {
    **dict.fromkeys(("commit", "snapshot", "checkpoint", "backup", "dump", "freeze"), _SAVE),
    **dict.fromkeys(("checkout", "switch", "reset", "revert", "undo", "back", "rollback"), _BACK),
    **dict.fromkeys(("shell", "console", "connect", "enter", "ssh", "bash"), _INSIDE),
    **dict.fromkeys(("start", "create", "new", "launch", "spawn"), _START),
    **dict.fromkeys(
        ("unpark",),
        "`ijfs wake NAME` lets a parked program or deployment go on",
    ),
    **dict.fromkeys(
        ("resume", "load", "unpause", "continue"),
        "`ijfs restore SNAPSHOT` brings a snapshot back to life; `ijfs wake NAME` lets a parked program go on",
    ),
    **dict.fromkeys(("restart",), f"`ijfs restore NAME --replace` goes back to its last snapshot; {_START}"),
    **dict.fromkeys(("kill", "end", "quit", "shutdown", "down"), _STOP),
    **dict.fromkeys(("delete", "forget", "remove", "drop", "del", "rmi"), _REMOVE),
    **dict.fromkeys(("clean", "cleanup", "purge"), "`ijfs prune` thins out snapshots, `ijfs gc` frees their bytes"),
    **dict.fromkeys(("sync", "upload", "download"), _REMOTE),
    **dict.fromkeys(("stash", "add", "rebase", "squash"), _WHOLE),
    **dict.fromkeys(("merge", "cherry-pick", "apply"), "`ijfs adopt NAME` takes home the files that a program wrote"),
    **dict.fromkeys(
        ("rename", "mv"), "`ijfs branch NEW OLD`, then `ijfs branch -d OLD`; a live program keeps its name"
    ),
    **dict.fromkeys(("duplicate", "copies", "clones"), "`ijfs fork NAME -n 3` makes live siblings of a program"),
    "blame": "`ijfs diff OLD NEW` says what differs between two snapshots, `ijfs diff NAME` what a program did since",
    **dict.fromkeys(("changes", "changed", "modified"), "`ijfs diff NAME` says what a program did since its snapshot"),
    "repair": "`ijfs fsck --repair` mends what can be mended",
    "upgrade": "ijfs is a Python package: `pip install --upgrade ijfs`",
    "update": "ijfs is a Python package: `pip install --upgrade ijfs`",
    "uninstall": "`ijfs stop --all --rm`, `ijfs kernel remove NAME`, then remove the repository and the package",
    "install": "`ijfs kernel install` makes Jupyter start kernels that can be saved",
    "jupyter": "`ijfs kernel install` makes Jupyter start kernels that can be saved; then `jupyter lab` as ever",
    "notebook": "`ijfs kernel install` makes Jupyter start kernels that can be saved; then `jupyter lab` as ever",
    "lab": "`ijfs kernel install` makes Jupyter start kernels that can be saved; then `jupyter lab` as ever",
    "ports": "`ijfs ps` shows which ports here lead to which inside",
    **dict.fromkeys(("pause", "suspend", "sleep", "hibernate"), _PARK),
}
"""What to type instead, for words that would change something, or that nothing here is called by."""


def rewritten(argv: list[str]) -> list[str]:
    """The command line with `help` and `version` as the options that they are here."""
    match argv:
        case ["version"]:
            return ["--version"]
        case ["help"]:
            return ["--help"]
        case ["help", *words] if not words[0].startswith("-"):
            return [*words, "--help"]
    return argv


def advice(words: Sequence[str], verbs: Iterable[str]) -> str:
    """What to type instead of words of which the first is no verb: a sentence, about the name that was typed behind it,
    if one was; "" where nobody can tell."""
    word, name = words[0], words[1] if len(words) > 1 else ""
    if word.lower() in SAID:
        said = SAID[word.lower()]
        return re.sub(r"\bNAME\b", name, said) if re.fullmatch(r"(?!HEAD)\w[\w.-]*", name, re.ASCII) else said
    near = nearest(word, verbs)
    return f"did you mean `ijfs {near}`?" if near else ""


def nearest(word: str, verbs: Iterable[str]) -> str | None:
    """The verb that a slip of the fingers makes this word of: one in a short word, two in a long one."""
    slips = 1 if len(word) < 6 else 2
    found = min(((distance(word, verb), verb) for verb in verbs), default=(slips + 1, ""))
    return found[1] if found[0] <= slips else None


def distance(left: str, right: str) -> int:
    """Letters to insert, take out, change, or swap with their neighbour, to get from one word to the other."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        before, previous, row = row, before, [i]
        for j, b in enumerate(right, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                row[j] = min(row[j], previous[j - 2] + 1)
    return row[-1]
