"""Letting go of the pages of a mapped file: a look at all of a large index is not to count as this process's memory.

LMDB maps the index. A page that was once looked at stays with the process until the kernel is short of memory: gc of 10
million chunks would show 840 MB more, and a container's limit takes it at its word. `Index.scan` calls this as it goes.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

_DONTNEED: Final = 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def let_go(file: Path) -> None:
    """Drop the mappings' pages of a file that this process maps for reading only; they stay in the page cache.

    Whoever reads them again, in any thread and at any time, faults them in again. OSError when the file is gone.
    """
    inode = str(file.stat().st_ino)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if fields[4] == inode and fields[1] == "r--s" and os.path.basename(fields[-1]) == file.name:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            _libc.madvise(start, end - start, _DONTNEED)
