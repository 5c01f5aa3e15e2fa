"""What a fuzzing campaign does to one file of a repository: what disks, copies, people and mischief do to files."""

from __future__ import annotations

import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

TARGETS = ("index", "pack", "journal", "sidecar", "format", "secret", "lock")
PAGE = 4096
MAGIC = b"\xabIJf"
EXTREMES = (0, 1, 7, 8, 63, 64, 255, 256, 0xFFFF, 0x1_0000, 1 << 18, 1 << 30, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)


class Mutation(NamedTuple):
    """What was done to which file, in one line each."""

    file: str
    what: str


Change = Callable[[bytearray, random.Random], str]
"""Changes the bytes; says what it did."""


def mutate(repository: Path, old: Path, target: str, rng: random.Random) -> Mutation:
    """Damage one file of a target in place. `old` has earlier copies of index and journal."""
    path = rng.choice(_files(repository, target))
    name = str(path.relative_to(repository))
    if target in ("index", "journal") and rng.random() < 0.04:
        source = rng.choice(sorted(old.iterdir())) / target
        shutil.copy(source, path)
        return Mutation(name, f"put back an old one, {source.parent.name}")
    if rng.random() < 0.02:
        path.unlink()
        return Mutation(name, "deleted")
    data = bytearray(path.read_bytes())
    change = rng.choice(_CHANGES[target] if data else [_garbage])
    what = change(data, rng)
    path.write_bytes(data)
    return Mutation(name, what)


def _files(repository: Path, target: str) -> list[Path]:
    if target in ("pack", "sidecar"):
        packs = sorted(repository.glob("packs/*.pack"))
        kind = 1 if target == "pack" else 2
        return [path for path in packs if path.read_bytes()[12] == kind]
    return [repository / {"index": "index/data.mdb", "lock": "index/lock.mdb"}.get(target, target)]


def _flip(data: bytearray, rng: random.Random) -> str:
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    return f"flipped a bit at {at}"


def _flips(data: bytearray, rng: random.Random) -> str:
    count = rng.choice((3, 20, 200))
    for _ in range(count):
        _flip(data, rng)
    return f"flipped {count} bits"


def _cut(data: bytearray, rng: random.Random) -> str:
    size = rng.randrange(len(data))
    del data[size:]
    return f"cut to {size}"


def _insert(data: bytearray, rng: random.Random) -> str:
    at, size = rng.randrange(len(data)), rng.choice((1, 8, 64, PAGE))
    data[at:at] = rng.randbytes(size)
    return f"inserted {size} at {at}"


def _zero(data: bytearray, rng: random.Random) -> str:
    at, size = rng.randrange(len(data)), rng.choice((1, 8, 64, 512, PAGE))
    size = min(size, len(data) - at)
    data[at : at + size] = bytes(size)
    return f"zeroed {size} at {at}"


def _copy(data: bytearray, rng: random.Random) -> str:
    at, source, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice((8, 64, 512, PAGE))
    data[at : at + size] = data[source : source + size]
    return f"copied {size} from {source} to {at}"


def _swap(data: bytearray, rng: random.Random) -> str:
    size = rng.choice((8, 64, 512))
    one, other = rng.randrange(len(data)), rng.randrange(len(data))
    first, second = data[one : one + size], data[other : other + size]
    if len(first) == len(second) and abs(one - other) >= size:
        data[one : one + size], data[other : other + size] = second, first
    return f"swapped {size} at {one} and {other}"


def _extreme(data: bytearray, rng: random.Random) -> str:
    at, value = rng.randrange(len(data)) & ~3, rng.choice(EXTREMES)
    data[at : at + 4] = struct.pack("<I", value)[: len(data) - at]
    return f"wrote {value:#x} at {at}"


def _garbage(data: bytearray, rng: random.Random) -> str:
    at, size = rng.randrange(len(data) + 1), rng.choice((16, 256, PAGE, 16 * PAGE))
    data[at : at + size] = rng.randbytes(size)
    return f"wrote {size} of noise at {at}"


def _grow(data: bytearray, rng: random.Random) -> str:
    data += rng.choice((rng.randbytes(100), bytes(2 * PAGE), bytes(data[-PAGE:])))
    return "grew"


def _frame_field(data: bytearray, rng: random.Random) -> str:
    """One field of a frame's header; mostly with its checksums made right again, as only mischief does."""
    found = _frames(data)
    if not found:
        return _flip(data, rng)
    at = rng.choice(found)
    field = rng.choice(("kind", "codec", "depth", "bases", "stored", "plain", "id", "payload", "crc", "sum"))
    if field in ("kind", "codec", "depth", "bases"):
        where = at + 4 + ("kind", "codec", "depth", "bases").index(field)
        data[where] = rng.choice((*range(10), 255))
    elif field in ("stored", "plain"):
        struct.pack_into("<I", data, at + (8 if field == "stored" else 12), rng.choice(EXTREMES))
    elif field == "id":
        other = rng.choice(found)
        data[at + 20 : at + 52] = data[other + 20 : other + 52]
    else:
        where = (
            at + {"payload": 64 + rng.randrange(16), "crc": 16 + rng.randrange(4), "sum": 52 + rng.randrange(12)}[field]
        )
        if where < len(data):
            data[where] ^= 1 << rng.randrange(8)
        if field != "payload":
            return f"flipped a bit in the {field} of the frame at {at}"
    fixed = rng.random()
    if fixed < 0.6:
        _mend_sum(data, at)
    if fixed < 0.75:
        _mend_crc(data, at)
    return f"changed the {field} of the frame at {at}{' with its checksums' if fixed < 0.75 else ''}"


def _frame_gone(data: bytearray, rng: random.Random) -> str:
    """Cut at the beginning of a frame: all that is left is whole."""
    found = _frames(data)
    at = rng.choice(found) if found else len(data)
    del data[at:]
    return f"cut before the frame at {at}"


def _page_field(data: bytearray, rng: random.Random) -> str:
    """A field of the head of a page of the index, or of a node's place on it."""
    page = rng.randrange(max(1, len(data) // PAGE)) * PAGE
    lower = int.from_bytes(data[page + 12 : page + 14], "little")
    at = page + rng.randrange(rng.choice((24, max(25, min(lower, PAGE)))))
    if at < len(data):
        data[at] = rng.choice((0, 1, 2, 4, 8, 15, 16, 255, data[at] ^ 1 << rng.randrange(8)))
    return f"changed byte {at - page} of page {page // PAGE}"


def _meta_field(data: bytearray, rng: random.Random) -> str:
    at = rng.choice((0, PAGE)) + rng.randrange(16, 152)
    if at < len(data):
        data[at] = rng.choice((0, 1, 255, data[at] ^ 1 << rng.randrange(8)))
    return f"changed byte {at} of the meta pages"


def _page_lost(data: bytearray, rng: random.Random) -> str:
    one, other = (rng.randrange(max(1, len(data) // PAGE)) * PAGE for _ in range(2))
    if rng.random() < 0.5:
        data[one : one + PAGE] = bytes(len(data[one : one + PAGE]))
        return f"zeroed page {one // PAGE}"
    data[one : one + PAGE] = data[other : other + PAGE]
    return f"wrote page {other // PAGE} to page {one // PAGE}"


def _frames(data: bytearray) -> list[int]:
    found, at = [], data.find(MAGIC)
    while at >= 0:
        if at % 8 == 0 and at + 80 <= len(data):
            found.append(at)
        at = data.find(MAGIC, at + 1)
    return found


def _mend_sum(data: bytearray, at: int) -> None:
    start = at + 64 + 40 * data[at + 7]
    (stored,) = struct.unpack_from("<I", data, at + 8)
    if start + stored <= len(data):
        data[at + 52 : at + 64] = blake3(bytes(data[start : start + stored])).digest(12)


def _mend_crc(data: bytearray, at: int) -> None:
    end = at + 64 + 40 * data[at + 7]
    if end <= len(data):
        head = data[at : at + 16] + bytes(4) + data[at + 20 : end]
        struct.pack_into("<I", data, at + 16, zlib.crc32(bytes(head)))


_ANY: list[Change] = [_flip, _flips, _cut, _insert, _zero, _copy, _swap, _extreme, _garbage, _grow]
_FRAMED: list[Change] = [*_ANY, *[_frame_field] * 8, _frame_gone]
_CHANGES: dict[str, list[Change]] = {
    "index": [*_ANY, *[_page_field] * 5, *[_meta_field] * 3, *[_page_lost] * 3],
    "pack": _FRAMED,
    "journal": _FRAMED,
    "sidecar": _FRAMED,
    "format": _ANY,
    "secret": _ANY,
    "lock": _ANY,
}
