"""Every error a user may meet derives from `IjfsError`: a sentence, a hint, an exit code.

Lowest layer, so that every other layer can raise and catch the same family. The command line prints
`str(error)` and `error.hint` and exits with `error.exit_code`; a traceback never reaches a user.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar, Final

HINTS: Final = {
    errno.ENOSPC: "free some space (`ijfs gc` gives back what nothing needs) and try again; nothing was changed",
    errno.EDQUOT: "the disk quota is used up; free some space and try again; nothing was changed",
    errno.EACCES: "check who owns the repository and its permissions",
    errno.EPERM: "check who owns the repository and its permissions",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.EIO: "the disk reports an error: look at the kernel's log, then run `ijfs fsck`",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "the machine has too many files open; try again when it has fewer",
    errno.ENOMEM: "there is too little memory, or the limit of address space is too low (ulimit -v)",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
"""What is advised where the system refused a read or write."""

REFUSALS: Final = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EFBIG, errno.ENOSPC, errno.EDQUOT),
)
"""Why the system, or a limit that was set, refuses for now: nothing is wrong with what is stored."""
NO_THREAD: Final = "can't start new thread"
"""What Python says where the system gives none."""
THREADS_HINT: Final = "raise the limits of processes (ulimit -u, a container's pids) and of address space (ulimit -v)"
_OF_A_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


NOT_BUILT = "run `tools/setup`, or install ijfs again: a compiled part is missing"
"""The hint where a module of ijfs itself cannot be imported, as after a `git pull` without a build."""


class IjfsError(Exception):
    """An expected failure: what happened (message), what to do next (hint), how scripts see it (exit code).

    `hint` may be given per instance or stand on the class; `exit_code` stands on the class (docs/guide.md
    lists them: 0 ok, 1 error, 2 usage, 3 partial, 10 no repository, 11 locked, 12 refused by preflight,
    13 the target died, 130 interrupted).
    """

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint if hint is not None else self.default_hint


class NoRepositoryError(IjfsError):
    """The path holds no ijfs repository."""

    exit_code = 10
    default_hint = "make one with `ijfs init`, or name one with -r/--repo or IJFS_REPO"


class UnknownFormatError(IjfsError):
    """The repository's format version is not one this program reads."""

    exit_code = 10
    default_hint = "use the ijfs version that wrote it, or a newer one"


class LockedError(IjfsError):
    """Another process holds what this operation needs for itself alone."""

    exit_code = 11


class PreflightError(IjfsError):
    """A check before the operation refused it; nothing was touched."""

    exit_code = 12


class TargetDiedError(IjfsError):
    """The program this operation works on is gone."""

    exit_code = 13


class PartialError(IjfsError):
    """Some of what was asked was done, and the message says which part was not."""

    exit_code = 3


class UnknownNameError(IjfsError):
    """No snapshot, branch, tag or instance of that name. `name`: what was taken for that of a snapshot, if anything."""

    name = ""
    default_hint = "`ijfs log` lists snapshots, `ijfs branch` branches, `ijfs ps` live programs"


class AmbiguousNameError(IjfsError):
    """An id prefix that several snapshots share."""


class CorruptError(IjfsError):
    """Stored bytes do not match their id or checksum, or a reference leads nowhere."""

    default_hint = "`ijfs fsck` names what is damaged; other snapshots stay readable"


class StorageError(IjfsError):
    """The operating system refused a read or write (disk full, permission, I/O error)."""

    refused: bool = False
    """Whether it refuses for now, and so nothing is damaged: `is_refusal`."""

    @classmethod
    def of(cls, what: str, error: OSError) -> StorageError:
        """`what` failed for the system's reason: a sentence that names the file, and a hint."""
        reason = error.strerror or str(error)
        if error.filename is not None and os.fsdecode(error.filename) not in what:
            reason = f"{os.fsdecode(error.filename)}: {reason}"
        found = cls(f"{what}: {reason}", hint=HINTS.get(error.errno or 0))
        found.refused = is_refusal(error)
        return found

    @classmethod
    def short_of(cls, what: str, reason: str, hint: str | None) -> StorageError:
        """`what` failed because the system, or a limit, gives no more of something."""
        found = cls(f"{what}: {reason}", hint=hint)
        found.refused = True
        return found


def is_of_a_disk(error: OSError) -> bool:
    """Whether a disk that is full, broken or read-only is the reason, and so nothing that ijfs did wrong."""
    return error.errno in _OF_A_DISK


def is_refusal(error: OSError) -> bool:
    """Whether it is the system, or a limit that was set, that refuses for now: nothing is wrong with what is stored."""
    return error.errno in REFUSALS


class ConflictError(IjfsError):
    """A branch or tag is not where the caller expected it: somebody else moved it first."""

    default_hint = "look at `ijfs log`, then try again"
