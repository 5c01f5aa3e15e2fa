"""Where CRIU had a process make a system call, while it was dumped: the image may show that in the place of its code.

CRIU writes `syscall; int3` over the first bytes of a process's first executable mapping (compel/src/lib/infect.c),
lets it run, and puts back what was there; last when it takes its own code out of the process again. By then the
process's pages have been moved into the stream, but a page that nobody has read yet is still the process's own: what is
read later shows those bytes. Of most programs this is the code of `_init`, which has run; of one without a C library
it is the vdso, and CRIU refuses to restore it. So what is really there is noted while the program stands still, and
put into the image where that shows a call. Called by checkpoint/freeze.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ijfs.live.criu.image_format import PE_LAZY, PE_PRESENT, parse_pagemap_entries
from ijfs.live.process import procfs
from ijfs_engine import PAGE, ArenaFile, pages_name

LENGTH: Final = 8
"""Bytes that CRIU writes (BUILTIN_SYSCALL_SIZE)."""
CALLS: Final = (b"\x0f\x05" + b"\xcc" * 6, b"\xcd\x80" + b"\xcc" * 6)
"""The call of a 64-bit and of a 32-bit process (compel/arch/x86/src/lib/infect.c)."""


class Code(NamedTuple):
    """The first bytes of a process's first executable mapping. `pid`: as the images number it."""

    pid: int
    address: int
    data: bytes


def first_code(pids: Iterable[int]) -> list[Code]:
    """Of processes that stand still, by the pids of this machine; one that cannot be looked at is left out."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            address = _first_executable(pid)
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                found.append(Code(procfs.inner_pid(pid), address, os.pread(memory, LENGTH, address)))
            finally:
                os.close(memory)
    return found


def put_back(images: Mapping[str, ArenaFile], noted: Iterable[Code]) -> int:
    """Write what was noted into images that show a call in its place; how many. CorruptError."""
    return sum(_put_back(images, code) for code in noted if code.data not in CALLS)


def _put_back(images: Mapping[str, ArenaFile], code: Code) -> bool:
    name = f"pagemap-{code.pid}.img"
    if name not in images:
        return False
    number, entries = parse_pagemap_entries(name, b"".join(images[name].segments()))
    offset = 0
    for address, pages, flags in entries:
        if not flags & (PE_PRESENT | PE_LAZY):
            continue
        if address <= code.address < address + pages * PAGE:
            shown = images[pages_name(number)].part(offset + code.address - address, LENGTH)
            if bytes(shown) in CALLS:
                shown[:] = code.data
                return True
            return False
        offset += pages * PAGE
    return False


def _first_executable(pid: int) -> int:
    with Path(f"/proc/{pid}/maps").open() as maps:
        return next(int(line.partition("-")[0], 16) for line in maps if line.split(maxsplit=2)[1][2] == "x")
