"""From what a person types to a snapshot's id: prefixes, branches, tags, `name~2`, `name^`, `latest`.

`Repository.resolve` calls it; rm uses `nearest` to move branches past what it takes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from ijfs_engine.errors import AmbiguousNameError, UnknownNameError
from ijfs_engine.format.frames import ID_SIZE
from ijfs_engine.format.records import ObjectId
from ijfs_engine.storage.index import REFS, REMOVED, SNAPSHOTS, View

MIN_PREFIX: Final = 4
NOTHING: Final[Mapping[ObjectId, Sequence[ObjectId]]] = MappingProxyType({})
_SPEC: Final = re.compile(r"([^~^]+)((?:~\d*|\^)*)")
_ASIDE: Final = b"tag/base@"
"""Tags of what programs stand on: made by the way, such a snapshot is nobody's latest."""
_NO_HEAD: Final = (
    "each program has a branch of its name: `lab` is its last snapshot, `lab~1` the one before; `latest` is of all"
)
_HEX: Final = re.compile(r"[0-9a-f]+")


def parse(spec: str) -> tuple[str, int]:
    """The name that `spec` begins with, and how many generations back from there it goes. UnknownNameError."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UnknownNameError(f"{spec!r} names no snapshot")
    steps = [int(step[1:] or 1) for step in re.findall(r"~\d*|\^", match[2])]
    return match[1], sum(steps)


def nearest(
    view: View, candidates: Sequence[ObjectId], without: Mapping[ObjectId, Sequence[ObjectId]] = NOTHING
) -> ObjectId | None:
    """The first of the candidates that is listed, or of their own parents where they were removed, depth first.
    `without`: what is to be removed, and its parents."""
    return next(_walk_back(view, candidates, without), None)


def nearest_ancestors(view: View, ident: ObjectId) -> list[ObjectId]:
    """The nearest listed ancestors of a removed snapshot, one per path."""
    return list(_walk_back(view, [ident], NOTHING))


def _walk_back(
    view: View, candidates: Sequence[ObjectId], without: Mapping[ObjectId, Sequence[ObjectId]]
) -> Iterator[ObjectId]:
    stack = list(reversed(candidates))
    seen: set[ObjectId] = set()
    while stack:
        ident = stack.pop()
        if ident in seen:
            continue
        seen.add(ident)
        if ident in without:
            stack += reversed(without[ident])
            continue
        if view.get(SNAPSHOTS, ident) is not None:
            yield ident
            continue
        row = view.get(REMOVED, ident) or b""
        stack += reversed([row[at : at + ID_SIZE] for at in range(1, len(row), ID_SIZE)])


def named(view: View, name: str) -> ObjectId:
    """The snapshot at a branch or tag, or with an id that begins so. UnknownNameError, AmbiguousNameError."""
    for prefix in ("branch/", "tag/"):
        found = view.get(REFS, (prefix + name).encode(errors="replace"))
        if found is None and name.startswith(prefix):
            found = view.get(REFS, name.encode(errors="replace"))
        if found is not None:
            return found
    return _by_prefix(view, name)


def set_aside(view: View) -> set[ObjectId]:
    """The snapshots that are nobody's latest."""
    return {ident for _, ident in view.prefixed(REFS, _ASIDE)}


def _by_prefix(view: View, name: str) -> ObjectId:
    if name in ("HEAD", "@"):
        raise UnknownNameError(f"no snapshot, branch or tag is called {name!r}", hint=_NO_HEAD)
    lower = name.lower()
    if not _HEX.fullmatch(lower) or len(lower) > 2 * ID_SIZE:
        raise _unknown_name(name)
    if len(lower) < MIN_PREFIX:
        raise _unknown_name(name, hint=f"an id needs at least {MIN_PREFIX} of its digits")
    found = [ident for ident, _ in view.prefixed(SNAPSHOTS, _whole_bytes(lower)) if ident.hex().startswith(lower)]
    if not found:
        raise _unknown_prefix(view, lower)
    if len(found) > 1:
        listed = ", ".join(ident.hex()[: max(12, len(lower) + 4)] for ident in found[:10])
        raise AmbiguousNameError(f"{name} could be any of {listed}", hint="give more digits")
    return found[0]


def _unknown_name(name: str, *, hint: str | None = None) -> UnknownNameError:
    error = UnknownNameError(f"no snapshot, branch or tag is called {name!r}", hint=hint)
    error.name = name
    return error


def _whole_bytes(digits: str) -> bytes:
    return bytes.fromhex(digits[: len(digits) & ~1])


def _unknown_prefix(view: View, digits: str) -> UnknownNameError:
    removed = removed_since_gc(view, digits)
    if not removed:
        return UnknownNameError(f"no snapshot's id begins with {digits}")
    short = removed[0].hex()[:12]
    return UnknownNameError(
        f"the snapshot {short} was removed", hint=f"`ijfs branch NAME {short}` brings it back, until `ijfs gc`"
    )


def removed_since_gc(view: View, digits: str) -> list[ObjectId]:
    """The removed snapshots whose id begins with these digits, at least 4, and at which no gc has looked yet."""
    if len(digits) < MIN_PREFIX or not _HEX.fullmatch(digits):
        return []
    rows = view.prefixed(REMOVED, _whole_bytes(digits))
    return [ident for ident, row in rows if row[:1] == b"\1" and ident.hex().startswith(digits)]


def removed_row(parents: Sequence[ObjectId], *, walked: bool = False) -> bytes:
    """The REMOVED row of a snapshot; `walked` once gc has looked at what it reached."""
    return bytes([not walked]) + b"".join(parents)
