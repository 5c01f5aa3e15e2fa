"""What a program asks of its own keeper: to be saved, how it stands, what there is. Made by server.py.

docs/architecture.md, "The guest protocol", has the requests; guest_port.py carries them. Every request may come twice,
so a save is known by its nonce, for as long as the keeper lives.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ijfs.live.checkpoint.snapshot_io import live_meta
from ijfs.live.errors import NotLiveError, ProtocolError
from ijfs.live.keeper.autosave import Autosaver, SaveVerb
from ijfs.live.keeper.state import InstanceState
from ijfs.live.model.guest_protocol import (
    GuestAnswer,
    GuestCell,
    GuestLog,
    GuestRequest,
    GuestSave,
    GuestStatus,
    LogAnswer,
    LoggedProgram,
    LoggedSnapshot,
    SaveAnswer,
    StatusAnswer,
)
from ijfs.live.model.paths import InstancePaths, live_directory
from ijfs.live.model.protocol import SaveArguments
from ijfs.live.model.record_file import read_record
from ijfs.live.process import procfs
from ijfs_engine import Snapshot
from ijfs_engine.errors import IjfsError

_log = logging.getLogger("ijfs.keeper")


class GuestRequests:
    """The requests of one keeper's program. `save`: the keeper's verb."""

    def __init__(self, state: InstanceState, autosaver: Autosaver, save: SaveVerb) -> None:
        self._state = state
        self._autosaver = autosaver
        self._save_verb = save
        self._nonces: dict[str, SaveAnswer | IjfsError] = {}

    def resumes(self, snapshot: Snapshot) -> None:
        """The program was restored from that snapshot. If the program itself asked for that snapshot, its next request
        is answered with `resumed`, even where this keeper has answered `saved`."""
        nonce = live_meta(snapshot).guest.nonce
        if nonce:
            self._nonces[nonce] = SaveAnswer("resumed", snapshot.id.hex(), self._state.name)

    async def answer(self, request: GuestRequest) -> GuestAnswer:
        """Answer one request at once. (Hooks are the guest port's own.)"""
        match request:
            case GuestSave():
                return self._save(request)
            case GuestCell():
                return self._autosaver.cell(request, self._save_verb)
            case GuestLog():
                return self._log()
            case GuestStatus():
                return self._status()
        raise ProtocolError(f"nobody answers a {type(request).__name__}")

    def _status(self) -> StatusAnswer:
        state = self._state
        return StatusAnswer(state.name, str(state.repo), state.record.snapshot)

    def _save(self, request: GuestSave) -> SaveAnswer:
        nonce = request.nonce
        if not nonce:
            raise IjfsError("a save needs a nonce")
        if nonce not in self._nonces:
            self._nonces[nonce] = SaveAnswer("pending")
            verify = request.verify and request.wait
            arguments = SaveArguments(message=request.message, nonce=nonce, wait=request.wait, verify=verify)
            self._state.spawn(self._save_for_program, nonce, arguments)
        answer = self._nonces[nonce]
        if isinstance(answer, IjfsError):
            raise answer.with_traceback(None)  # each time anew: the frames of the last time go
        return answer

    async def _save_for_program(self, nonce: str, arguments: SaveArguments) -> None:
        try:
            result = await self._save_verb(arguments, lambda event: None)
        except IjfsError as error:
            self._nonces[nonce] = error
        except Exception as error:
            _log.exception("save for the program failed")
            self._nonces[nonce] = IjfsError(f"the save failed: {error}")
        else:
            self._nonces[nonce] = SaveAnswer(
                "saved" if result.snapshot else "thawed",
                result.snapshot,
                self._state.name,
                result.verified,
                result.warnings,
            )

    def _log(self) -> LogAnswer:
        repository = self._state.snapshots.repository
        stats = repository.stats()
        return LogAnswer(
            snapshots=tuple(map(_logged, repository.snapshots())),
            branches={name: ident.hex() for name, ident in repository.refs.branches().items()},
            tags={name: ident.hex() for name, ident in repository.refs.tags().items()},
            here=self._state.record.snapshot,
            repository=str(self._state.repo),
            stored=stats.pack_bytes + stats.index_bytes + stats.journal_bytes,
            live=tuple(_live_programs(self._state.repo)),
        )


def _logged(snapshot: Snapshot) -> LoggedSnapshot:
    parents = tuple(parent.hex() for parent in snapshot.parents)
    return LoggedSnapshot(
        snapshot.id.hex(),
        parents,
        snapshot.created_ns,
        snapshot.message,
        _program_of(snapshot),
        snapshot.size,
        snapshot.added,
    )


def _program_of(snapshot: Snapshot) -> str:
    """What the program was called that was saved; "" of an import."""
    try:
        return live_meta(snapshot).spec.name
    except NotLiveError:
        return ""


def _live_programs(repo: Path) -> Iterator[LoggedProgram]:
    """Which programs of the repository run, and on which snapshots they stand; by their records, no keeper is asked."""
    for directory in sorted(live_directory(repo).iterdir()):
        with contextlib.suppress(IjfsError):
            record = read_record(InstancePaths(directory))
            if procfs.is_alive(record.program):
                yield LoggedProgram(directory.name, record.snapshot)
