"""Memory that a program wants to be empty in whatever is forked off it (MADV_WIPEONFORK): its random generator's state.

A copy that is restored beside others is forked off, too: it finds such memory empty, and BoringSSL, AWS-LC, s2n and
others that watch a page of it seed their generators anew. In place of what was saved it comes back as it was. Called by
stage_images.py, which leaves the pages out (lending.pagemap_of); the pager is told that they are in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ijfs.live.criu.forked_memory import Span
from ijfs.live.criu.image_format import MADV_WIPEONFORK, parse_areas

# The advice of an area, as CRIU writes it (vma.proto, field 9): a quick look, as hardly any image has such an area.
_ADVICE = re.compile(rb"\x48([\x80-\xff]{2,9}[\x00-\x7f])")


def find(images: Mapping[str, bytes]) -> dict[int, list[Span]]:
    """Where each process has such memory, by its number; processes without are left out. CorruptError."""
    found = {}
    for name, data in images.items():
        pid = name.removeprefix("mm-").removesuffix(".img")
        if name.startswith("mm-") and pid.isdecimal() and any(map(_is_wiped, _ADVICE.findall(data))):
            areas = [area for area in parse_areas(name, data) if area.advice >> MADV_WIPEONFORK & 1]
            if areas:
                found[int(pid)] = sorted(Span(area.start, area.end) for area in areas)
    return found


def _is_wiped(varint: bytes) -> bool:
    value = 0
    for byte in reversed(varint):
        value = value << 7 | byte & 0x7F
    return bool(value >> MADV_WIPEONFORK & 1)
