"""CRIU image sets made by hand for tests: real framing and protobuf, memory of our choosing."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

PAGE = 4096
COMMON_MAGIC, PAGEMAP_MAGIC = 0x54564319, 0x56084025
PE_PARENT, PE_LAZY, PE_PRESENT = 1, 2, 4


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(fields: Iterable[tuple[int, int]]) -> bytes:
    body = b"".join(varint(number << 3) + varint(value) for number, value in fields)
    return struct.pack("<I", len(body)) + body


def pagemap(pages_id: int, entries: Iterable[tuple[int, int, int]]) -> bytes:
    """Entries are (virtual address, pages, flags)."""
    head = struct.pack("<II", COMMON_MAGIC, PAGEMAP_MAGIC) + message([(1, pages_id)])
    return head + b"".join(message([(1, address), (2, pages), (4, flags)]) for address, pages, flags in entries)


def image_set(processes: Mapping[int, Mapping[int, bytes]], first_id: int = 1) -> dict[str, bytes]:
    """A set of image files; per pid its memory: address -> whole pages (adjacent mappings are merged, as CRIU does)."""
    files = {"inventory.img": b"inventory", "pstree.img": b"pstree"}
    for pages_id, (pid, memory) in enumerate(processes.items(), first_id):
        entries: list[tuple[int, int, int]] = []
        for address, data in sorted(memory.items()):
            if entries and entries[-1][0] + entries[-1][1] * PAGE == address:
                entries[-1] = (entries[-1][0], entries[-1][1] + len(data) // PAGE, PE_PRESENT)
            else:
                entries.append((address, len(data) // PAGE, PE_PRESENT))
        files[f"pagemap-{pid}.img"] = pagemap(pages_id, entries)
        files[f"pages-{pages_id}.img"] = b"".join(data for _, data in sorted(memory.items()))
        files[f"core-{pid}.img"] = b"core %d" % pid
    return files
