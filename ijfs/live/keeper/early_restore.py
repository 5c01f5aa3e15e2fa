"""A lazy restore that begins before its keeper is loaded: main.py starts it in a thread, lifecycle.py takes it over.

What a keeper serves clients with (trio, relay, guest port) takes 0.1 s to load, and a restore needs none of it. So it
runs at once, and the rest of the keeper is loaded while CRIU, another process, is at work. Nothing of that rest is
imported here. What is restored and how is checkpoint/restore.py's, as for every other restore.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ijfs.live.errors import ProtocolError
from ijfs.live.model import protocol
from ijfs.live.model.paths import InstancePaths
from ijfs.live.model.protocol import RestoreArguments

if TYPE_CHECKING:
    from ijfs.live.checkpoint.phases import OnPhase
    from ijfs.live.checkpoint.restore import Restored, RestoreRequest
    from ijfs.live.checkpoint.snapshot_io import SnapshotStore
    from ijfs.live.pager.api import PagerProcess


class EarlyRestore:
    """The first request of a keeper, being done if it is a plain lazy restore into a new instance. `pager` is a pager's
    process that waits for work."""

    def __init__(self, directory: Path, first: socket.socket, pager: PagerProcess) -> None:
        self.snapshots: SnapshotStore | None = None
        """What the restore reads from; None where it was not begun. For the keeper, too."""
        self._directory = directory
        self._first = first
        self._pager: PagerProcess | None = pager
        self._line: bytes | None = None
        self._request: RestoreRequest | None = None
        self._restored: Restored | None = None
        self._error: BaseException | None = None
        self._line_read = threading.Event()
        self._criu_works = threading.Event()
        self._telling = threading.Lock()
        self._on_phase: OnPhase | None = None
        self._phases: list[str] = []
        self._thread = threading.Thread(target=self._run, name="early-restore", daemon=True)
        self._thread.start()

    def wait_until_criu_works(self) -> None:
        """Return when CRIU runs, or when there is nothing to be done here (any more)."""
        self._criu_works.wait()

    def line(self) -> bytes | None:
        """The first request as it came; None when the client left without one. Blocks; raises what kept it from being
        read: only of a client that left may it be said that nothing was asked."""
        self._line_read.wait()
        if self._line is None and self._error is not None:
            raise self._error
        return self._line

    @property
    def begun(self) -> bool:
        """Whether a restore was begun here."""
        return self._request is not None

    def request(self) -> RestoreRequest | None:
        """What is being restored, or why it cannot be; None when nothing was begun. Blocks."""
        self._criu_works.wait()
        if self._request is None and self._error is not None:
            raise self._error
        return self._request

    def result(self, on_phase: OnPhase) -> Restored:
        """The program that runs again, or why it does not. Blocks; `on_phase` also gets what was begun before."""
        with self._telling:
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

    def take_pager(self) -> PagerProcess | None:
        """The pager's process, where no restore has taken it; it is the caller's from now on."""
        pager, self._pager = self._pager, None
        return pager

    def close(self) -> None:
        """End a pager that nobody took."""
        pager = self.take_pager()
        if pager is not None:
            pager.close()

    def _run(self) -> None:
        try:
            self._line = protocol.first_line(self._first)
            self._line_read.set()
            arguments = _plain_restore(self._line)
            if arguments is not None:
                self._restore(arguments)
        except BaseException as error:
            self._error = error
        finally:
            self._line_read.set()
            self._criu_works.set()

    def _restore(self, arguments: RestoreArguments) -> None:
        from ijfs.live.checkpoint.restore import RestoreRequest, restore_snapshot
        from ijfs.live.checkpoint.snapshot_io import SnapshotStore

        self.snapshots = SnapshotStore(self._directory.parent.parent)
        request = RestoreRequest.of(arguments, self.snapshots, InstancePaths(self._directory).sandbox(1), beside=True)
        if request.meta.spec.gpu:  # its driver is the keeper's to load
            return
        self._request = request
        self._restored = restore_snapshot(
            request,
            self.snapshots,
            on_phase=self._phase,
            on_running=self._criu_works.set,
            pager=self.take_pager(),
        )

    def _phase(self, name: str) -> None:
        with self._telling:
            if self._on_phase is not None:
                self._on_phase(name)
            else:
                self._phases.append(name)


def _plain_restore(line: bytes | None) -> RestoreArguments | None:
    """The arguments of a request that asks for a lazy restore into a new instance; anything else is the keeper's."""
    if line is None:
        return None
    with contextlib.suppress(ProtocolError):  # the keeper refuses it
        arguments = protocol.decode_request(line).arguments()
        if isinstance(arguments, RestoreArguments):
            plain = not (arguments.eager or arguments.again or arguments.gpus or arguments.files == "restore")
            return arguments if plain else None
    return None
