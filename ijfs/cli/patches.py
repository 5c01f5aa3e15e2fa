"""Two versions of a file as a patch: what `ijfs diff -p` prints."""

from __future__ import annotations

import difflib

from ijfs.cli import notebooks
from ijfs_engine import ObjectId, Reader
from ijfs_engine.errors import UnknownNameError

# A larger file is not compared line by line: difflib takes seconds for a MiB of lines that all differ. Of a notebook
# most is pictures, and not compared.
_LARGEST, _LARGEST_NOTEBOOK = 1 << 20, 64 << 20
_NOTEBOOK = ".ipynb"


def largest(path: str) -> int:
    """Bytes of the largest file that is compared line by line."""
    return _LARGEST_NOTEBOOK if path.endswith(_NOTEBOOK) else _LARGEST


def patch(path: str, old: bytes | None, new: bytes | None) -> str:
    """A unified diff, or a line that says why there is none; None stands for no file."""
    if path.endswith(_NOTEBOOK) and old is not None and new is not None and (found := notebooks.patch(path, old, new)):
        return found
    before, after = _lines(old), _lines(new)
    if before is None or after is None:
        return f"binary or large files differ: {path}\n"
    names = ("/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{path}")
    lines = difflib.unified_diff(before, after, *names)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def stored(reader: Reader, root: ObjectId, path: str) -> bytes | None:
    """A file of a snapshot's tree, for `patch`: what says that it is too large where it is; None where there is no
    regular file. CorruptError."""
    try:
        entry = reader.lookup(root, path)
    except UnknownNameError:
        return None
    if entry.kind != "f":
        return None
    return reader.open(entry).read(0, entry.size) if entry.size <= largest(path) else b"\0"


def _lines(content: bytes | None) -> list[str] | None:
    """The lines of a text; None for what is none, or too long."""
    if content is None:
        return []
    if len(content) > _LARGEST or b"\0" in content:
        return None
    try:
        return content.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
