"""Keys in a snapshot, by how they look: in the memory of its processes and in the files that were written.

Called by `ijfs scan`. Memory is read page by page in the order of addresses, so that what crosses two pages that follow
one another is found; a key is never shown whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ijfs.history import processes
from ijfs_engine import PAGE

if TYPE_CHECKING:
    from ijfs_engine import Entry, Reader, Snapshot, StoredFile

PATTERNS = {
    "AWS access key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{22,255})\b",
    "OpenAI key": rb"\bsk-(?!ant-)(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20,200}",
    "Anthropic key": rb"\bsk-ant-[A-Za-z0-9_-]{20,200}",
    "private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "JSON web token": rb"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{16,2000}",
}
"""What a key looks like: those that are given out with a prefix of their own, and forms that nothing else has."""

BEGINNINGS = {
    "AWS access key": (b"AKIA", b"ASIA"),
    "GitHub token": (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
    "OpenAI key": (b"sk-",),
    "Anthropic key": (b"sk-ant-",),
    "private key": (b"-----BEGIN ",),
    "JSON web token": (b"eyJ",),
}
"""One of these is in whatever its pattern finds. To look for them first: 1.6 s for 200 MB, where it was 10."""

BLOCK = 4 << 20
OVERLAP = 16 << 10
"""Of two blocks of one stretch: longer than any key."""

SHOWN = 6
"""Characters of a key that are shown at its beginning."""


@dataclass(frozen=True)
class Finding:
    """Something that looks like a key. `where`: a process (`process 12`) or a file; `at`: the address, or the place in
    the file; `shown`: how it begins, and its length."""

    kind: str
    where: str
    at: int
    shown: str
    in_memory: bool


@dataclass(frozen=True)
class Looked:
    """Stretches of bytes that follow one another, of a process or file: where each begins, and how to read it."""

    where: str
    stored: StoredFile
    stretches: Sequence[tuple[int, int, int]]  # (address or place, offset in `stored`, length)
    in_memory: bool


def scan(reader: Reader, snapshot: Snapshot, own: Sequence[str] = ()) -> Iterator[Finding]:
    """What is found, process by process and then file by file. `own`: further patterns (regular expressions)."""
    patterns = {**PATTERNS, **{f"pattern {text}": text.encode() for text in own}}
    compiled = {kind: re.compile(pattern) for kind, pattern in patterns.items()}
    for looked in (*_memories(reader, snapshot), *_files(reader, snapshot)):
        for at, offset, length in looked.stretches:
            yield from _in_stretch(looked, at, offset, length, compiled)


def _in_stretch(
    looked: Looked, at: int, offset: int, length: int, patterns: dict[str, re.Pattern[bytes]]
) -> Iterator[Finding]:
    for begin in range(0, length, BLOCK - OVERLAP):
        data = looked.stored.read(offset + begin, min(BLOCK, length - begin))
        last = begin + len(data) >= length
        for kind, pattern in patterns.items():
            if kind in BEGINNINGS and not any(text in data for text in BEGINNINGS[kind]):
                continue
            for found in pattern.finditer(data):
                if last or found.start() < BLOCK - OVERLAP:  # else the next block has it whole
                    yield Finding(kind, looked.where, at + begin + found.start(), _shown(found[0]), looked.in_memory)
        if last:
            return


def _shown(key: bytes) -> str:
    """A key that is not shown whole."""
    text = key.decode(errors="replace")
    head = text if text.startswith("-----BEGIN") else text[:SHOWN]
    return f"{head}… ({len(key)} bytes)"


def _memories(reader: Reader, snapshot: Snapshot) -> Iterator[Looked]:
    for (_, _), image in sorted(processes.images(reader, snapshot.root).items()):
        stored = reader.open(image.pages)
        offset, stretches = 0, []
        for run in stored.layout.runs if stored.layout is not None else ():
            stretches.append((run.first * PAGE, offset, run.pages * PAGE))
            offset += run.pages * PAGE
        yield Looked(image.title, stored, _joined(stretches), True)


def _joined(runs: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Runs that follow one another by address and in the file, as one."""
    found: list[tuple[int, int, int]] = []
    for address, offset, length in runs:
        if found and found[-1][0] + found[-1][2] == address and found[-1][1] + found[-1][2] == offset:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + length)
        else:
            found.append((address, offset, length))
    return found


def _files(reader: Reader, snapshot: Snapshot) -> Iterator[Looked]:
    for top in ("files", "shm", "dev"):
        for path, entry in _below(reader, snapshot.root, top):
            if entry.kind == "f" and entry.size:
                yield Looked(path, reader.open(entry), [(0, 0, entry.size)], False)


def _below(reader: Reader, root: bytes, top: str) -> Iterator[tuple[str, Entry]]:
    entries = {entry.name: entry for entry in reader.tree(root).entries}
    found = entries.get(top.encode())
    todo = [("" if top == "files" else f"/dev/{top}" if top == "shm" else "/dev", found.content)] if found else []
    seen: set[bytes] = set()  # what stands in many places is looked at once: a stranger's trees have no end else
    while todo:
        prefix, tree = todo.pop()
        if tree is None or tree in seen:
            continue
        seen.add(tree)
        for entry in reader.tree(tree).entries:
            path = f"{prefix}/{os.fsdecode(entry.name)}"
            if entry.kind == "d":
                todo.append((path, entry.content))
            else:
                yield path, entry
