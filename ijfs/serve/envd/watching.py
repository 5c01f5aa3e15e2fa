"""What happens in directories of a sandbox, seen by inotify from outside: for both they are one filesystem.

Events are named as fsnotify for Go names them, which the clients' users know: a rename is RENAME of the old name and
CREATE of the new one.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
from pathlib import Path

from asyncinotify import Event, Inotify, Mask

from ijfs.serve.envd.files import SandboxFiles
from ijfs.serve.envd.messages import EventType, FilesystemEvent
from ijfs_engine.errors import IjfsError, UnknownNameError

MOST_WATCHERS = 100
"""Of one sandbox: each takes one of the machine's inotify instances (fs.inotify.max_user_instances)."""

EVENTS: dict[Mask, EventType] = {
    Mask.CREATE: "EVENT_TYPE_CREATE",
    Mask.MOVED_TO: "EVENT_TYPE_CREATE",
    Mask.MODIFY: "EVENT_TYPE_WRITE",
    Mask.DELETE: "EVENT_TYPE_REMOVE",
    Mask.MOVED_FROM: "EVENT_TYPE_RENAME",
    Mask.ATTRIB: "EVENT_TYPE_CHMOD",
}
WATCHED = Mask.CREATE | Mask.MOVED_TO | Mask.MODIFY | Mask.DELETE | Mask.MOVED_FROM | Mask.ATTRIB | Mask.ONLYDIR


class NoWatcherError(UnknownNameError):
    """No watcher with this id."""


class Watch:
    """One directory that is watched, and with `recursive` all that are in it."""

    def __init__(self, repo: Path, name: str, directory: str, *, recursive: bool, with_entry: bool) -> None:
        """OSError where it is no directory."""
        self._repo, self._name, self._top = repo, name, directory
        self._recursive, self._with_entry = recursive, with_entry
        self._inotify = Inotify(sync_timeout=0)
        self._below: dict[int, str] = {}
        try:
            with SandboxFiles(repo, name) as files:
                self._add(files, "")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Watch no more."""
        self._inotify.close()

    async def next(self) -> tuple[FilesystemEvent, ...]:
        """What happens next, as much as there is then."""
        return self._told([await self._inotify.get(), *self._waiting()])

    def now(self) -> tuple[FilesystemEvent, ...]:
        """What has happened by now."""
        return self._told(self._waiting())

    def _waiting(self) -> list[Event]:
        found = []
        while (event := self._inotify.sync_get()) is not None:
            found.append(event)
        return found

    def _add(self, files: SandboxFiles, below: str) -> list[str]:
        """Watch a directory, and those in it; what was in them before they were watched."""
        fd = files.access.open(posixpath.join(self._top, below), os.O_PATH | os.O_DIRECTORY)
        try:
            watch = self._inotify.add_watch(f"/proc/self/fd/{fd}", WATCHED)
        finally:
            os.close(fd)
        self._below[watch.wd] = below
        return self._add_inner(files, below) if self._recursive else []

    def _add_inner(self, files: SandboxFiles, below: str) -> list[str]:
        found = []
        for info in files.access.listing(posixpath.join(self._top, below)):
            inner = posixpath.join(below, info.name)
            found.append(inner)
            if info.kind == "directory":
                with contextlib.suppress(OSError):  # it went just now
                    found += self._add(files, inner)
        return found

    def _told(self, events: list[Event]) -> tuple[FilesystemEvent, ...]:
        if not events:
            return ()
        with SandboxFiles(self._repo, self._name) as files:
            return tuple(told for event in events for told in self._told_of(files, event))

    def _told_of(self, files: SandboxFiles, event: Event) -> list[FilesystemEvent]:
        kind = next((EVENTS[mask] for mask in EVENTS if event.mask & mask), None)
        below = self._below.get(event.watch.wd) if event.watch is not None else None
        if kind is None or below is None or event.name is None:
            return []
        name = posixpath.join(below, str(event.name))
        found = [self._event(files, name, kind)]
        if self._recursive and kind == "EVENT_TYPE_CREATE" and event.mask & Mask.ISDIR:
            with contextlib.suppress(OSError):
                found += [self._event(files, inner, kind) for inner in self._add(files, name)]
        return found

    def _event(self, files: SandboxFiles, name: str, kind: EventType) -> FilesystemEvent:
        entry = None
        if self._with_entry:
            with contextlib.suppress(OSError):
                entry = files.entry(posixpath.join(self._top, name))
        return FilesystemEvent(name=name, type=kind, entry=entry)


class Watchers:
    """Those of one sandbox that clients ask now and then, by id."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}

    def add(self, watch: Watch) -> str:
        """Its id."""
        if len(self._watches) >= MOST_WATCHERS:
            watch.close()
            raise IjfsError(f"there are {MOST_WATCHERS} watchers already", hint="stop those that are not needed")
        ident = secrets.token_hex(8)
        self._watches[ident] = watch
        return ident

    def find(self, ident: str) -> Watch:
        """NoWatcherError."""
        if ident not in self._watches:
            raise NoWatcherError(f"there is no watcher {ident}")
        return self._watches[ident]

    def remove(self, ident: str) -> None:
        """NoWatcherError."""
        self.find(ident).close()
        del self._watches[ident]

    def close(self) -> None:
        """All of them."""
        while self._watches:
            self._watches.popitem()[1].close()
