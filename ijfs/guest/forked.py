"""A child that a CUDA program forked lets go of the GPU's files: of no use to it, they would keep it from being saved.

The driver refuses every call in a process that was forked after cuInit. But the child holds what it inherited, open
files and mappings of devices, which neither the driver nor CRIU can save. Each descriptor becomes one of /dev/null and
each mapping plain memory, at the same number and address: what the driver's library may still do there when the child
ends does no harm. Called in the child by torch_path/sitecustomize.py. Standard library only, Python 3.9 and newer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator

DEVICE_FILES = "/dev/nvidia"
INITIALISED = "/dev/nvidia-uvm"
"""Open where CUDA was initialised. Without it only NVML was used, which goes on in a child, and so does CUDA there."""

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000


def let_go() -> None:
    """Replace what this process holds of the GPU, if CUDA was initialised before it was forked. Never raises."""
    try:
        held = list(_held_descriptors())
        if not any(target.startswith(INITIALISED) for _, target in held):
            return
        with open("/proc/self/maps") as maps:
            ranges = list(device_ranges(maps))
        _replace_mappings(ranges)
        _replace_descriptors([number for number, _ in held])
    except Exception:  # a program must not fail because it could not be saved
        return


def device_ranges(maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of every mapping of a GPU's file, from the lines of /proc/PID/maps."""
    for line in maps:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith(DEVICE_FILES):
            begin, end = (int(address, 16) for address in fields[0].split("-"))
            yield begin, end - begin


def _held_descriptors() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + entry)
        except OSError:  # the listing's own, closed by now
            continue
        if target.startswith(DEVICE_FILES):
            yield int(entry), target


def _replace_mappings(ranges: list[tuple[int, int]]) -> None:
    """Plain memory takes their place in one step each; it costs nothing until it is touched."""
    system_mmap = ctypes.CDLL(None, use_errno=True).mmap
    system_mmap.restype = ctypes.c_void_p
    system_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    for address, size in ranges:
        system_mmap(address, size, protection, flags, -1, 0)


def _replace_descriptors(numbers: list[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in numbers:
            os.dup2(null, number, inheritable=False)
    finally:
        os.close(null)
