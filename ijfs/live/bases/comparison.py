"""`ijfs base diff`: what of a root is not as the base has it, by what `lstat` says. Bytes are not read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ijfs.live.bases.records import base_meta
from ijfs.live.bases.root_walk import FILES, Item, Walk, left_out
from ijfs.live.bases.versions import newest
from ijfs_engine import Entry, Repository


class Change(NamedTuple):
    """One name that is not as it was; `path` as it is inside the root."""

    what: Literal["added", "changed", "removed"]
    path: str


def compare(repository: Repository, name: str, root: Path | None) -> list[Change]:
    """The changes of a root (default: where the base was imported from), by path. What is below an added or removed
    directory is not listed. UnknownNameError."""
    snapshot = newest(repository, name)
    meta = base_meta(snapshot)
    where = (root or Path(meta.origin if meta else "/")).resolve()
    walk = Walk(where, frozenset(left_out(where, repository.path)))
    now = {item.at: item for item in walk.items(0)}
    with contextlib.closing(repository.reader()) as reader:
        before: dict[str, Entry] = {}
        todo = [(FILES, reader.lookup(snapshot.root, FILES))]
        while todo:
            at, entry = todo.pop()
            before[at] = entry
            if entry.kind == "d" and entry.content is not None:
                todo += [(f"{at}/{_name(one)}", one) for one in reader.tree(entry.content).entries]
    found = [Change("removed", _inside(at)) for at in before if at not in now and _above(at) in now]
    found += [Change("added", _inside(at)) for at in now if at not in before and _above(at) in before]
    found += [Change("changed", _inside(at)) for at, item in now.items() if at in before and _differs(item, before[at])]
    return sorted(found, key=lambda change: change.path)


def _differs(item: Item, before: Entry) -> bool:
    now = item.entry
    if now.kind == "d" and before.kind == "d":  # names in it are listed themselves
        now = msgspec.structs.replace(now, mtime_ns=before.mtime_ns)
    size = item.source.lstat().st_size if item.source is not None and item.source.exists() else now.size
    facts = (now.kind, now.mode, now.uid, now.gid, now.mtime_ns, now.target, now.xattrs, size if now.kind == "f" else 0)
    old_size = before.size if before.kind == "f" else 0
    old = (before.kind, before.mode, before.uid, before.gid, before.mtime_ns, before.target, before.xattrs, old_size)
    return facts != old


def _name(entry: Entry) -> str:
    return entry.name.decode(errors="surrogateescape")


def _inside(at: str) -> str:
    return at[len(FILES) :] or "/"


def _above(at: str) -> str:
    return at.rpartition("/")[0]
