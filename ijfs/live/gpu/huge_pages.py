"""Transparent huge pages for all memory while the driver copies: a third faster out of the GPU, a fifth faster into it.

What the driver copies into is fresh memory, and first touch of 4 KiB pages is what bounds it. The kernel's setting is
the machine's, so it is `always` for the time of the copies and put back by the last keeper that copies. Whether another
one does is a lock that the kernel drops with its holder: a keeper that is killed counts no more, and who comes next
finds its note of what was set before and puts that back. Called by `program`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "IJFS_GPU_HUGE_PAGES"
"""`0` in a keeper's environment leaves the machine's setting alone."""

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
STATE = Path("/run/ijfs/huge-pages")
"""What is in it is about the running kernel: it goes with a reboot, as the kernel's setting does."""

_WANTED = "always"
_NAMES = ("enabled", "defrag")
_CHOSEN = re.compile(r"\[(\S+)\]")

_log = logging.getLogger("ijfs.gpu")


class HugePages:
    """The machine's setting, changed for a while; any number of processes at once, each of which may be killed."""

    def __init__(self, settings: Path = SETTINGS, state: Path = STATE) -> None:
        self._settings = settings
        self._state = state

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """The body runs with huge pages for all memory, where the setting may be written; it never fails for that."""
        copying = self._begin()
        try:
            yield
        finally:
            if copying is not None:
                self._end(copying)

    def put_back(self) -> None:
        """Put back what a process that was killed left changed, unless another copies now."""
        if not self._note.exists():
            return
        with _complained(), self._guarded(), self._users() as users:
            self._put_back_if_last(users)

    @property
    def _note(self) -> Path:
        return self._state / "before.json"

    def _begin(self) -> int | None:
        """A descriptor that says, as long as it is open, that this process copies; None where nothing was changed."""
        if os.environ.get(VARIABLE) == "0" or not os.access(self._settings / _NAMES[0], os.W_OK):
            return None
        users = None
        with _complained():
            for directory in (self._state.parent, self._state):
                directory.mkdir(mode=0o700, exist_ok=True)
            with self._guarded():
                users = self._open("users")
                fcntl.flock(users, fcntl.LOCK_SH)
                self._change()
        return users

    def _end(self, users: int) -> None:
        try:
            with _complained(), self._guarded():
                self._put_back_if_last(users)
        finally:
            os.close(users)

    def _change(self) -> None:
        """The note first: whoever finds the setting changed has to find what it was."""
        if not self._note.exists():
            fresh = self._note.with_suffix(".new")
            fresh.write_text(json.dumps({name: self._chosen(name) for name in _NAMES}))
            fresh.rename(self._note)
        for name in _NAMES:
            (self._settings / name).write_text(_WANTED)

    def _put_back_if_last(self, users: int) -> None:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        before = json.loads(self._note.read_text())
        for name in _NAMES:
            if self._chosen(name) == _WANTED:  # else somebody chose anew meanwhile
                (self._settings / name).write_text(before[name])
        self._note.unlink()

    def _chosen(self, name: str) -> str:
        """The word in brackets: `always [madvise] never`."""
        text = (self._settings / name).read_text()
        found = _CHOSEN.search(text)
        return found[1] if found else text.strip()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """One process at a time begins, ends or puts back."""
        guard = self._open("guard")
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield
        finally:
            os.close(guard)

    @contextlib.contextmanager
    def _users(self) -> Iterator[int]:
        users = self._open("users")
        try:
            yield users
        finally:
            os.close(users)

    def _open(self, name: str) -> int:
        return os.open(self._state / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _complained() -> Iterator[None]:
    """A copy must not fail because it would have been slower."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        _log.warning("transparent huge pages are left as they are: %s", error)
