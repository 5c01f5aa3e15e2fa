"""Address space that a program reserved and that CRIU cannot map again; called by mending.py, on mm-N.img.

V8, wasm, .NET and browsers reserve a hundred GB that may not be touched (PROT_NONE), which costs nothing. CRIU maps it
writable for a moment, to fill in its pages, and the kernel refuses a single mapping of more than the machine's memory
and swap: `Unable to map ANON_VMA: Cannot allocate memory`. So a private mapping that large gets MAP_NORESERVE, which
takes it out of that account. What it changes for the program: making more than all the machine's memory writable at one
stroke succeeds where the kernel would have said ENOMEM (the memory is still taken only when it is touched); and parts
of the reservation that were writable when it was saved are mappings of their own beside it. Where the machine
counts strictly (vm.overcommit_memory=2) the flag has no effect, and the restore is refused as before.

In mm-N.img (images/mm.proto, vma.proto) the way is mm_entry {14: vma_entry}, and there {1: start, 2: end, 6: flags}.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ijfs.live.criu.image_format import (
    MAP_NORESERVE,
    MAP_PRIVATE,
    MM_MAGIC,
    number_field,
    numbers,
    parse_fields,
    with_nested,
    with_records,
)

_AREA = 14
_START, _END, _FLAGS = 1, 2, 6
# An area as CRIU writes it: its start and its end come first. Only a quick look at a few hundred of them, of which
# hardly ever one is so large.
_NUMBER = rb"([\x80-\xff]{0,9}[\x00-\x7f])"
_AREAS = re.compile(rb"\x72[\x00-\x7f]\x08" + _NUMBER + rb"\x10" + _NUMBER)


def mappable_bytes() -> int | None:
    """The largest writable mapping that this machine allows (mm/util.c); None where it counts in another way."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "0":
            return None
        found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(found[name].split()[0]) << 10 for name in ("MemTotal", "SwapTotal"))
    return None


def commit_left() -> int | None:
    """Bytes that programs may reserve yet, where this machine counts strictly (vm.overcommit_memory=2); else None."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            found = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
            limit, used = (int(found[name].split()[0]) << 10 for name in ("CommitLimit", "Committed_AS"))
            return max(0, limit - used)
    return None


def without_accounting(name: str, image: bytes, most: int) -> bytes:
    """mm-N.img with MAP_NORESERVE at every private mapping of more than `most` bytes. CorruptError."""
    if not any(_value(end) - _value(start) > most for start, end in _AREAS.findall(image)):
        return image

    def area(message: bytes) -> bytes:
        values = numbers(parse_fields(name, message, 0, len(message)))
        flags = values.get(_FLAGS, 0)
        if values.get(_END, 0) - values.get(_START, 0) <= most or not flags & MAP_PRIVATE or flags & MAP_NORESERVE:
            return message
        return message + number_field(_FLAGS, flags | MAP_NORESERVE)

    return with_records(name, image, MM_MAGIC, lambda mm: with_nested(name, mm, _AREA, area))


def _value(varint: bytes) -> int:
    value = 0
    for byte in reversed(varint):
        value = value << 7 | byte & 0x7F
    return value
