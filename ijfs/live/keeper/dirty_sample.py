"""How much of a program's memory changed since a moment, by a sample of its pages. Used by autosave.py.

The kernel could tell exactly (soft-dirty bits, PAGEMAP_SCAN) only where CONFIG_MEM_SOFT_DIRTY is on, which it seldom
is, or through a userfaultfd in the program. Page fault counts say nothing of memory that is written in place, and CPU
time nothing of how much was written. So some thousand pages, drawn at random from what is resident and writable, are
read from outside and hashed; later the same pages are read again. With N pages a share p is known to
sqrt(p(1-p)/N): 5 % ± 0.5 % for N = 2048. The program is not stopped for it and not touched: only pages that are
present are read.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ijfs.live.process import procfs

PAGES = 2048

# Below this many pages a share means little.
FEWEST = 64

# Reserved address space is mostly empty: so many draws for each page wanted, and then what was found has to do.
DRAWS = 8

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT = 0x80  # bit 63 of a pagemap entry, in its last byte


@dataclass(frozen=True, slots=True)
class Sample:
    """Hashes of some pages of some processes, and what the processes held in all, in bytes."""

    hashes: dict[tuple[int, int], int]  # (pid, address) → hash
    resident: int


def take(pids: Sequence[int]) -> Sample:
    """Draw a sample now. Processes that end meanwhile are left out."""
    areas = [(pid, start, end) for pid in pids for start, end in _writable(pid)]
    hashes: dict[tuple[int, int], int] = {}
    with contextlib.ExitStack() as stack:
        readers = {pid: reader for pid in pids if (reader := _open(pid, stack)) is not None}
        for pid, address in _draw(areas, DRAWS * PAGES):
            if len(hashes) >= PAGES:
                break
            if pid in readers and (found := readers[pid].hash_of(address)) is not None:
                hashes[pid, address] = found
    return Sample(hashes, _resident(pids))


def changed_share(before: Sample, pids: Sequence[int]) -> float | None:
    """The share of the memory held now that is new or other than it was, 0 to 1; None when the sample is too small.

    A page that was freed counts as changed, memory that was added as new.
    """
    if len(before.hashes) < FEWEST:
        return None
    with contextlib.ExitStack() as stack:
        readers = {pid: reader for pid in pids if (reader := _open(pid, stack)) is not None}
        other = sum(
            pid not in readers or readers[pid].hash_of(address) != found
            for (pid, address), found in before.hashes.items()
        )
    now = _resident(pids)
    changed = other / len(before.hashes) * before.resident + max(0, now - before.resident)
    return min(1.0, changed / max(now, 1))


def _resident(pids: Sequence[int]) -> int:
    return sum(procfs.dumpable_bytes(pid) for pid in pids)


def _writable(pid: int) -> Iterator[tuple[int, int]]:
    """Private writable areas: what a dump holds. Shared ones would be counted once for each process."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        addresses, permissions = line.split(maxsplit=2)[:2]
        if permissions[:2] == "rw" and permissions[3] == "p":
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16)


def _draw(areas: Sequence[tuple[int, int, int]], count: int) -> Iterator[tuple[int, int]]:
    """Addresses of pages, each as likely as any other."""
    weights = [(end - start) // _PAGE for _, start, end in areas]
    if not areas:
        return
    for pid, start, end in random.choices(areas, weights, k=count):
        yield pid, start + random.randrange((end - start) // _PAGE) * _PAGE


@dataclass(frozen=True, slots=True)
class _Reader:
    """The memory of one process from outside."""

    pagemap: int
    memory: int

    def hash_of(self, address: int) -> int | None:
        """The hash of a page; None where there is none. (Reading one that is absent would make the program have it.)"""
        try:
            entry = os.pread(self.pagemap, 8, address // _PAGE * 8)
            if len(entry) < 8 or not entry[7] & _PRESENT:
                return None
            return hash(os.pread(self.memory, _PAGE, address))
        except OSError:
            return None


def _open(pid: int, stack: contextlib.ExitStack) -> _Reader | None:
    fds = []
    for name in ("pagemap", "mem"):
        try:
            fds.append(os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return None
        stack.callback(os.close, fds[-1])
    return _Reader(*fds)
