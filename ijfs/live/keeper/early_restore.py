"""A lazy restore that begins before its keeper is loaded: process.py starts it in a thread, lifecycle.py takes it over.

What a keeper serves clients with (trio, relay, guest port) takes 0.1 s to load, and a restore needs none of it. So it
runs at once, and the rest of the keeper is loaded while CRIU, another process, is at work.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijfs.live.model import protocol
from ijfs.live.model.paths import InstancePaths

if TYPE_CHECKING:
    from ijfs.live.checkpoint.restore import Restored
    from ijfs.live.checkpoint.snapshot_io import LiveMeta, SnapshotStore
    from ijfs.live.pager.api import PagerProcess
    from ijfs_engine import Snapshot


class EarlyRestore:
    """The first request of a keeper, being done if it is a plain lazy restore into a new instance."""

    def __init__(self, directory: Path, first: socket.socket, pager: PagerProcess) -> None:
        self.pager: PagerProcess | None = pager
        """The pager's process, where the restore has not taken it."""
        self.vault: SnapshotStore | None = None
        self._directory = directory
        self._first = first
        self._line: bytes | None = None
        self._loaded: tuple[Snapshot, LiveMeta] | None = None
        self._restored: Restored | None = None
        self._error: BaseException | None = None
        self._read = threading.Event()
        self._at_work = threading.Event()
        self._on_phase: Callable[[str], None] | None = None
        self._phases: list[str] = []
        self._thread = threading.Thread(target=self._run, name="head-start", daemon=True)
        self._thread.start()

    def wait_until_others_work(self) -> None:
        """Return when CRIU runs, or when there is nothing to be done here (any more)."""
        self._at_work.wait()

    def line(self) -> bytes | None:
        """The first request as it came; None when the client left without one. Blocks."""
        self._read.wait()
        return self._line

    @property
    def begun(self) -> bool:
        """Whether a restore was begun here."""
        return self._loaded is not None

    def load(self) -> tuple[Snapshot, LiveMeta] | None:
        """The snapshot that is being restored, or why it cannot be; None when nothing was begun. Blocks."""
        self._at_work.wait()
        if self._loaded is None and self._error is not None:
            raise self._error
        return self._loaded

    def result(self, on_phase: Callable[[str], None]) -> Restored:
        """The program that runs again, or why it does not. Blocks; `on_phase` also gets what was begun before."""
        for name in self._phases:
            on_phase(name)
        self._on_phase = on_phase
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._restored is not None
        return self._restored

    def abandon(self) -> None:
        """End what was restored, where nobody is going to keep it."""
        self._thread.join()
        if self._restored is not None:
            self._restored.abandon()

    def _run(self) -> None:
        try:
            with contextlib.suppress(OSError):
                self._line = _first_line(self._first)
            self._read.set()
            args = _plain_restore(self._line)
            if args is not None:
                self._restore(str(args["snapshot"]), int(args.get("siblings", 1)))
        except BaseException as error:
            self._error = error
        finally:
            self._at_work.set()

    def _restore(self, spec: str, siblings: int) -> None:
        from ijfs.live.checkpoint import restore
        from ijfs.live.checkpoint.snapshot_io import SnapshotStore

        self.vault = SnapshotStore(self._directory.parent.parent)
        snapshot, meta = self.vault.load(spec)
        if meta.spec.gpu:  # its driver is the keeper's to load
            return
        self._loaded = snapshot, meta
        pager, self.pager = self.pager, None
        layers = InstancePaths(self._directory).layers(1)
        self._restored = restore.restore_snapshot(
            layers,
            self.vault,
            snapshot,
            meta,
            eager=False,
            siblings=siblings,
            on_phase=self._phase,
            while_running=self._at_work.set,
            pager_ahead=pager,
        )

    def _phase(self, name: str) -> None:
        if self._on_phase is not None:
            self._on_phase(name)
        else:
            self._phases.append(name)


def _first_line(sock: socket.socket) -> bytes | None:
    lines = protocol.LineBuffer()
    while data := sock.recv(1 << 16):
        found = lines.feed(data)
        if found:
            return found[0]
    return None


def _plain_restore(line: bytes | None) -> dict[str, Any] | None:
    """The arguments of a request that asks for a lazy restore into a new instance; anything else is the keeper's."""
    request = protocol.decode(line) if line is not None else {}
    args = request.get("args") or {}
    plain = request.get("verb") == "restore" and not (args.get("eager") or args.get("again") or args.get("gpus"))
    return args if plain else None
