"""CRIU's images made by hand, and a slow twin of their parser: written from protobuf's description, not from the code.

The twin shares no line with ijfs.live.criu.image_format, so that the two can be compared on any bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

PAGEMAP_MAGIC, MM_MAGIC, MEMFD_MAGIC, FILES_MAGIC = 0x56084025, 0x57492820, 0x48453499, 0x56303138
CORE_MAGIC, PSTREE_MAGIC, TCP_STREAM_MAGIC = 0x55053847, 0x50273030, 0x51465506
COMMON_MAGIC = 0x54564319


class NotAnImageError(Exception):
    """The twin cannot read it."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of (number, value): an int is a varint, bytes are a string or a message."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def image_file(magic: int, records: Sequence[bytes], common: int = COMMON_MAGIC) -> bytes:
    return struct.pack("<II", common, magic) + b"".join(struct.pack("<I", len(r)) + r for r in records)


def pagemap(entries: Sequence[tuple[int, int, int]], pages_id: int = 1) -> bytes:
    """A pagemap image of (vaddr, pages, flags)."""
    records = [message((1, vaddr), (2, pages & 0xFFFFFFFF), (4, flags), (5, pages)) for vaddr, pages, flags in entries]
    return image_file(PAGEMAP_MAGIC, [message((1, pages_id)), *records])


# -- the twin -------------------------------------------------------------------------------------------------------


def twin_records(data: bytes, magic: int) -> list[bytes]:
    if not data:
        return []
    if data[:8] != struct.pack("<II", COMMON_MAGIC, magic):
        raise NotAnImageError
    rest, found = data[8:], []
    while rest:
        length = int.from_bytes(rest[:4], "little")
        if len(rest) < 4 + length:
            raise NotAnImageError
        found.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return found


def twin_fields(body: bytes) -> list[tuple[int, int | bytes | None]]:
    """(number, value): an int, bytes, or None for eight or four bytes of a fixed width."""
    found: list[tuple[int, int | bytes | None]] = []
    while body:
        key, body = _twin_number(body)
        number, kind = divmod(key, 8)
        if kind == 0:
            value, body = _twin_number(body)
            found.append((number, value))
        elif kind in (1, 2, 5):
            length = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                length, body = _twin_number(body)
            if length > len(body):
                raise NotAnImageError
            found.append((number, body[:length] if kind == 2 else None))
            body = body[length:]
        else:
            raise NotAnImageError
    return found


def twin_numbers(body: bytes) -> dict[int, int]:
    return {number: value for number, value in twin_fields(body) if isinstance(value, int)}


def _twin_number(body: bytes) -> tuple[int, bytes]:
    digits = 1 + next((at for at, byte in enumerate(body[:10]) if byte < 0x80), 10)
    if digits > 10:
        raise NotAnImageError
    total = sum((byte & 0x7F) * 128**at for at, byte in enumerate(body[:digits]))
    return total % 2**64, body[digits:]
