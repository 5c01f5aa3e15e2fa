"""An IPython kernel that comes back as one copy among others draws random numbers of its own. Every IPython
kernel in a sandbox looks for that (kernels.py).

A page of its memory is marked as to be empty in forked children (MADV_WIPEONFORK): ijfs empties such memory in forks
and in copies restored beside others, and leaves it as it was in place and with `--same-random`. So a page that is empty
tells, before any code is run, that this is a copy. No thread and no message are needed, and a save is none the slower.
"""

import mmap
from typing import Any

from ijfs.guest import randomness

WIPE_ON_FORK = 18
"""MADV_WIPEONFORK of linux/mman.h; Python has no name for it."""

_MARK = 1


class Copies:
    """Notices that this process is a copy."""

    def __init__(self) -> None:
        """OSError where the kernel does not know such memory (before Linux 4.14)."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page.madvise(WIPE_ON_FORK)
        self._page[0] = _MARK

    def reseed_if_copied(self, *_: Any) -> None:
        """Seed the shared generators anew, once in each copy."""
        if self._page[0] != _MARK:
            self._page[0] = _MARK
            randomness.reseed()


_copies: "Copies | None" = None


def watch(shell: Any) -> None:
    """Look before each piece of code that the shell runs. A second call changes nothing."""
    global _copies
    if _copies is None:
        try:
            _copies = Copies()
        except OSError:
            return
        shell.events.register("pre_execute", _copies.reseed_if_copied)
