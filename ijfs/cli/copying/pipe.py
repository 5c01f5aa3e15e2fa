"""`ijfs cp NAME:PATH -`: a file as its bytes, a directory as a tar archive; and a file from standard input."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ijfs.cli.copying.source import PIECE, Node
from ijfs.cli.output import writing_out
from ijfs_engine import Entry
from ijfs_engine.errors import IjfsError

_TYPES = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "p": tarfile.FIFOTYPE}


def write_out(node: Node, name: str) -> None:
    """To standard output. IjfsError for what is neither file nor directory."""
    if node.entry.kind == "f":
        for data in whole(node):
            _out(data)
    elif node.entry.kind == "d":
        with tarfile.open(fileobj=_Out(), mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _archive(archive, node, name or ".")
    else:
        raise IjfsError(f"{name} is neither a file nor a directory")
    with writing_out():
        sys.stdout.buffer.flush()


def whole(node: Node) -> Iterator[bytes]:
    """A file's bytes from beginning to end, holes as zeros."""
    done = 0
    for at, data in node.pieces():
        yield from _zeros(at - done)
        yield data
        done = at + len(data)
    yield from _zeros(node.entry.size - done)


def _zeros(count: int) -> Iterator[bytes]:
    for at in range(0, count, PIECE):
        yield bytes(min(PIECE, count - at))


def _out(data: bytes) -> None:
    with writing_out():
        sys.stdout.buffer.write(data)


class _Out(io.RawIOBase):
    """Standard output, as tarfile writes to it."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        _out(bytes(data))
        return len(data)


def _archive(archive: tarfile.TarFile, top: Node, name: str) -> None:
    stack = [(name, top)]
    while stack:
        path, node = stack.pop()
        kind = _TYPES.get(node.entry.kind)
        if kind is not None:
            archive.addfile(_member(node.entry, path, kind), _Reading(node) if node.entry.kind == "f" else None)
        if node.entry.kind == "d":
            children = [
                (f"{path}/{child.entry.name.decode(errors='surrogateescape')}", child) for child in node.children()
            ]
            stack += reversed(children)
        if node is not top:
            node.close()


def _member(entry: Entry, path: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.mode, member.uid, member.gid = kind, entry.mode, entry.uid, entry.gid
    member.mtime = entry.mtime_ns / 1e9
    member.size = entry.size if kind == tarfile.REGTYPE else 0
    member.linkname = entry.target.decode(errors="surrogateescape")
    return member


class _Reading(io.RawIOBase):
    """A file's bytes as tarfile reads them: as many as its header says, also of a file that shrinks meanwhile."""

    def __init__(self, node: Node) -> None:
        self._pieces = whole(node)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, None)) is not None:
            self._rest += piece
        found, self._rest = self._rest[:size], self._rest[size:]
        return found + bytes(size - len(found))


@dataclass
class StandardInput:
    """Standard input as a file to be copied."""

    name: bytes

    @property
    def entry(self) -> Entry:
        """An ordinary file of now."""
        return Entry(name=self.name, kind="f", mode=0o644, uid=0, gid=0, mtime_ns=time.time_ns(), size=0)

    def children(self) -> Iterator[Node]:
        """None."""
        return iter(())

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """What comes, until it ends."""
        at = 0
        while data := sys.stdin.buffer.read(PIECE):
            yield at, data
            at += len(data)

    def close(self) -> None:
        """It stays open."""
