"""The pager's account: what a keeper that did not start the pager must know, in a file that outlives both.

An earlier keeper's pager can be asked nothing, and a killed one looks like one that has finished. So each pager writes
down here how far it has come, and says `complete` before it ends; where that is missing, not all memory is in.

The file has its size from the start and is overwritten in place by one call: a disk that fills up later does no harm.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ijfs.live.model.records import Process
from ijfs.live.process import procfs

FILE_NAME: Final = "pager.account"
UNFINISHED: Final = "its pager ended before all of it was in, and what was missing reads as zeros"
"""What is wrong with a program's memory whose pager was killed when no keeper was there to replace it."""

_SIZE: Final = 512
_TRIES: Final = 20
_TRY_AGAIN_S: Final = 0.005


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """How far a restore's memory has come, over all its processes; pages are of 4096 bytes."""

    pager: Process | None = None
    """Who pages at the moment; None before it begins."""
    complete: bool = False
    pages: int = 0
    arrived: int = 0
    """Copied in, zero, or given up as poisoned."""
    poisoned: int = 0
    lost: int = 0
    """Forked children whose missing memory nobody brings any more."""

    @property
    def share(self) -> float:
        """0.0 … 1.0 of the memory is in."""
        return 1.0 if self.complete else self.arrived / self.pages if self.pages else 0.0

    @property
    def damage(self) -> str:
        """Why the memory that came in is not what was saved; empty where it is."""
        return damage(self.poisoned, self.lost)


def damage(poisoned: int, lost: int) -> str:
    """A sentence about pages that could not be had, and about children whose pages nobody brings; empty for none."""
    found = []
    if poisoned:
        found.append(f"{poisoned * 4} KiB of it could not be read from the repository")
    if lost:
        found.append("a process that it forked while its memory came in reads zeros where memory was missing")
    return "; ".join(found)


class Progress(NamedTuple):
    """How far a pager has come that an earlier keeper started."""

    share: float
    """0.0 … 1.0 of the memory is in."""
    complete: bool
    damage: str
    """Why the memory is not, and will not be, what was saved; empty where it is."""


def progress_of(workdir: Path, pager: Process) -> Progress:
    """What the restore in this directory has brought; `pager` brought it, or another in its place."""
    account = read(workdir) or Account()
    if not procfs.is_alive(account.pager or pager):
        account = read(workdir) or account  # it may have finished just now
        if not account.complete:
            return Progress(account.share, False, UNFINISHED)
    return Progress(account.share, account.complete, account.damage)


def create(workdir: Path) -> Path:
    """The file of a restore that begins; OSError."""
    path = workdir / FILE_NAME
    path.write_bytes(_encoded(Account()))
    return path


def read(workdir: Path) -> Account | None:
    """The account of the restore in this directory; None where there is none that can be read."""
    for _ in range(_TRIES):  # a look in the middle of a write may see half of each
        with contextlib.suppress(msgspec.DecodeError):
            try:
                return msgspec.json.decode((workdir / FILE_NAME).read_bytes(), type=Account)
            except OSError:
                return None
        time.sleep(_TRY_AGAIN_S)
    return None


class AccountBook:
    """The account as its pager keeps it; for the listening thread. What cannot be written leaves it incomplete."""

    def __init__(self, path: Path) -> None:
        """A pager takes it over, in the place of an earlier one or as the first: what is lost stays so."""
        self._path = path
        self._account = Account(pager=procfs.identify(os.getppid()), lost=(read(path.parent) or Account()).lost)
        self.note()

    def note(self, **changes: Any) -> None:
        """Change the account, on disk too."""
        self._account = msgspec.structs.replace(self._account, **changes)
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, _encoded(self._account), 0)
            finally:
                os.close(fd)

    def add_lost(self) -> None:
        """A forked child's userfaultfd is gone."""
        self.note(lost=self._account.lost + 1)


def _encoded(account: Account) -> bytes:
    return msgspec.json.encode(account).ljust(_SIZE)
