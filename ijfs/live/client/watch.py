"""What happens in a repository, as it happens: to its programs, as their keepers tell, and to its names and snapshots.

For `ijfs watch`, `ijfs.events` and the panel in JupyterLab. Nothing is polled where the kernel tells (inotify): which
programs there are is read off the directory `live`, and a change of refs off the journal, which each one is written to.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import msgspec

from ijfs.live.client.connection import KeeperClient
from ijfs.live.errors import KeeperError, NoInstanceError, ProtocolError
from ijfs.live.model import protocol
from ijfs.live.model.paths import InstancePaths, live_directory
from ijfs.live.model.protocol import Happened, What
from ijfs.live.model.record_file import read_record
from ijfs.live.model.records import InstanceRecord
from ijfs.live.process import inotify, procfs
from ijfs_engine import Repository
from ijfs_engine.errors import CorruptError

Kind = Literal[What, "started", "refs"]
KINDS = (*get_args(What), "started", "refs")

AGAIN_S = 0.5
"""Between tries to reach the keeper of a program that runs without an answering one."""

COMMIT_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""When refs are read after the journal has changed, in seconds from one look to the next, until they have: the line in
the journal is there before its transaction is through."""


class RepositoryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. `kind`: as protocol.What has it of a program, and `started`: a program came up; `refs`:
    branches, tags or the list of snapshots changed. `instance`: the program, "" for refs. `snapshot`: which one was
    saved or gone back to. `text`: a snapshot's message, why something failed or ended, which names moved. `at_ns`: when
    it was heard."""

    kind: Kind
    instance: str = ""
    snapshot: str = ""
    text: str = ""
    at_ns: int = msgspec.field(default_factory=time.time_ns)


Refs = tuple[dict[str, bytes], dict[str, bytes], int]
"""Branches, tags, and how many snapshots there are."""


class RepositoryWatch:
    """Events of a repository from now on; a context manager, used by one thread and stopped from any.

    NoRepositoryError where there is none. `documents`: whoever hears of `document` gives the notebook
    (KeeperClient.give).
    """

    def __init__(self, repo: str | os.PathLike[str], *, documents: bool = False) -> None:
        self._documents = documents
        self._engine = Repository.open(Path(repo))
        self._live = live_directory(repo)
        self._notices = inotify.Inotify()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = threading.Lock()
        self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._notices, selectors.EVENT_READ, self._heard)
        self._selector.register(self._wake, selectors.EVENT_READ, list)
        self._lines: dict[str, _Line] = {}
        self._running: set[str] = set()
        """Programs that are known to run."""
        self._unreached: set[str] = set()
        """Those of them, or new ones, whose keeper did not answer yet."""
        self._looks: list[float] = []
        self._notices.watch(Path(self._engine.path), inotify.MODIFY | inotify.MOVED_TO | inotify.CREATE)
        self._refs = self._read_refs()
        self._running.update(name for name in self._names() if self._reach(name) or name in self._unreached)

    def __enter__(self) -> RepositoryWatch:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines.values():
            line.close()
        self._selector.close()
        self._notices.close()
        self._engine.close()
        with self._stopping:
            os.close(self._wake)
            self._wake = -1

    def stop(self) -> None:
        """Have the iteration end; from any thread."""
        with self._stopping:
            self._stopped = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def __iter__(self) -> Iterator[RepositoryEvent]:
        """Each event as it comes, until `stop`."""
        while not self._stopped:
            yield from self._due()
            for key, _ in self._selector.select(self._pause()):
                use: Callable[[], list[RepositoryEvent]] = key.data
                yield from use()

    # -- what is due by the clock ---------------------------------------------------------------------------------

    def _pause(self) -> float | None:
        waits = [max(at - time.monotonic(), 0) for at in self._looks[:1]]
        return min([*waits, AGAIN_S]) if self._unreached else min(waits, default=None)

    def _due(self) -> list[RepositoryEvent]:
        found = []
        while self._looks and self._looks[0] <= time.monotonic():
            self._looks.pop(0)
            found += self._refs_changed()
        for name in list(self._unreached):
            found += self._reached(name)
        return found

    # -- names and snapshots --------------------------------------------------------------------------------------

    def _read_refs(self) -> Refs:
        refs = self._engine.refs
        return refs.branches(), refs.tags(), self._engine.stats().snapshots

    def _journal_written(self) -> None:
        at = time.monotonic()
        self._looks = [at := at + pause for pause in COMMIT_S]

    def _refs_changed(self) -> list[RepositoryEvent]:
        before, now = self._refs, self._read_refs()
        if now == before:
            return []
        self._refs, self._looks = now, []
        moved = [
            f"{kind} {name}"
            for kind, old, new in (("branch", before[0], now[0]), ("tag", before[1], now[1]))
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        return [RepositoryEvent(kind="refs", text=", ".join(moved))]

    # -- programs -------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        if not self._live.is_dir():
            return []
        self._notices.watch(self._live, inotify.CREATE)
        return [entry.name for entry in self._live.iterdir() if entry.is_dir()]

    def _heard(self) -> list[RepositoryEvent]:
        """What the kernel tells of directories: the repository's, `live`, an instance's."""
        found: list[RepositoryEvent] = []
        for directory, name in self._notices.changes():
            if directory == self._live:
                found += self._reached(name)
            elif directory.parent == self._live:
                found += self._reached(directory.name)
            elif name == "journal":
                self._journal_written()
            elif name == self._live.name:
                for one in self._names():
                    found += self._reached(one)
        return found

    def _reached(self, name: str) -> list[RepositoryEvent]:
        """Try to reach a program's keeper: what there is to tell of it."""
        if name in self._lines or not self._reach(name) or name in self._running:
            return []
        self._running.add(name)
        return [RepositoryEvent(kind="started", instance=name)]

    def _reach(self, name: str) -> bool:
        """Listen to a program's keeper; whether that began just now."""
        with contextlib.suppress(OSError):
            self._notices.watch(self._live / name, inotify.CREATE | inotify.MOVED_TO)
        record = _record(self._live, name)
        if record is None or record.status != "running" or not procfs.is_alive(record.program):
            self._unreached.discard(name)
            return False
        try:
            line = _Line(InstancePaths(self._live / name), documents=self._documents)
        except (KeeperError, OSError):
            self._unreached.add(name)
            return False
        self._unreached.discard(name)
        self._lines[name] = line
        self._selector.register(line.socket, selectors.EVENT_READ, lambda: self._told(name, line))
        return True

    def _told(self, name: str, line: _Line) -> list[RepositoryEvent]:
        """What a keeper says; when it ends without a word, whether its program has ended with it."""
        found = [
            RepositoryEvent(kind=event.what, instance=name, snapshot=event.snapshot, text=event.text)
            for event in line.events()
        ]
        if not line.ended:
            return found
        self._selector.unregister(line.socket)
        line.close()
        del self._lines[name]
        record = _record(self._live, name)
        if not line.said_exited and record is not None and procfs.is_alive(record.program):
            self._unreached.add(name)
            return found
        self._running.discard(name)
        if line.said_exited:
            return found
        return [*found, RepositoryEvent(kind="exited", instance=name, text="its keeper was killed")]


class _Line:
    """A connection to a keeper that tells what happens. KeeperError, OSError where nobody listens."""

    def __init__(self, paths: InstancePaths, *, documents: bool) -> None:
        with KeeperClient.open(paths) as client:
            self.socket = client.detach()
        self.ended = self.said_exited = False
        self._lines = protocol.LineBuffer()
        self.socket.sendall(protocol.encode_request(1, protocol.WatchArguments(documents=documents)))
        self.socket.setblocking(False)

    def events(self) -> list[Happened]:
        """What has come."""
        found = []
        for line in self._received():
            with contextlib.suppress(ProtocolError):
                event = protocol.decode_keeper_line(line).known_event()
                if isinstance(event, Happened):
                    found.append(event)
        self.said_exited = self.said_exited or any(event.what == "exited" for event in found)
        return found

    def _received(self) -> list[bytes]:
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.ended = not data
        return self._lines.feed(data)

    def close(self) -> None:
        self.socket.close()


def _record(live: Path, name: str) -> InstanceRecord | None:
    with contextlib.suppress(NoInstanceError, CorruptError):
        return read_record(InstancePaths(live / name))
    return None


__all__ = ["KINDS", "Kind", "RepositoryEvent", "RepositoryWatch"]
