"""A process to be paged: python pager_program.py WORKDIR PID MAPPINGS, then lines of Python on its standard input.

It does in Python what CRIU's restorer does: regions at fixed addresses, a userfaultfd over them, handed over through
WORKDIR/lazy-pages.socket. What a line evaluates to comes back as a Python literal.
"""

from __future__ import annotations

import ast
import ctypes
import os
import socket
import struct
import sys
from array import array

from userfaultfd import open_userfaultfd

from ijfs.live.pager.uffd import Uffd

PAGE = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_ZEROS = bytes(PAGE)


def map_at(vaddr: int, length: int) -> int:
    """Fresh anonymous memory exactly there (MAP_FIXED_NOREPLACE)."""
    got: int = _libc.mmap(vaddr, length, 3, 0x100022, -1, 0)
    assert got == vaddr, hex(got)
    return got


def read(vaddr: int) -> bytes:
    return ctypes.string_at(vaddr, PAGE)


def wrong(vaddr: int, pages: int, image: int | None = None) -> list[int]:
    """The pages from `vaddr` on that do not hold what the image has at `image` (default: the same address)."""
    base = vaddr if image is None else image
    found = []
    for at in range(0, pages * PAGE, PAGE):
        if read(vaddr + at) != array("Q", range(base + at, base + at + 512)).tobytes():
            found.append(vaddr + at)
    return found


def not_zero(vaddr: int, pages: int) -> list[int]:
    return [vaddr + at for at in range(0, pages * PAGE, PAGE) if read(vaddr + at) != _ZEROS]


def unmap(vaddr: int, length: int) -> int:
    return int(_libc.munmap(vaddr, length))


def advise(vaddr: int, length: int, advice: int = 4) -> int:
    """madvise, MADV_DONTNEED by default."""
    return int(_libc.madvise(vaddr, length, advice))


def protect(vaddr: int, length: int, protection: int) -> int:
    return int(_libc.mprotect(vaddr, length, protection))


def remap(source: int, destination: int, length: int) -> int:
    """mremap(MREMAP_MAYMOVE | MREMAP_FIXED)."""
    return int(_libc.mremap(source, length, length, 3, destination))


def forked(expression: str) -> object:
    """The value of an expression in a forked child."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, repr(eval(expression)).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    return ast.literal_eval(answer.decode()) if answer else f"status {status}"


def main(workdir: str, pid: int, mappings: list[tuple[int, int]]) -> None:
    for start, end in mappings:
        map_at(start, end - start)
    uffd = Uffd(open_userfaultfd())
    for start, end in mappings:
        uffd.register(start, end - start)
    criu = socket.socket(socket.AF_UNIX)
    os.chdir(workdir)
    criu.connect("lazy-pages.socket")
    criu.send(struct.pack("<i", -7))  # a zombie of the tree
    criu.send(struct.pack("<i", pid))
    socket.send_fds(criu, [b"\0"], [uffd.fd])
    uffd.close()
    criu.send(b"FTSR")
    criu.close()
    print(repr("connected"), flush=True)
    for line in sys.stdin:
        print(repr(eval(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), ast.literal_eval(sys.argv[3]))
