"""What a program asks of its own keeper: to be saved, how it stands, what there is. Made by server.py.

docs/architecture.md, "The guest protocol", has the requests; guest_port.py carries them. Every request may come twice,
so a save is known by its nonce, for as long as the keeper lives.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ijfs.live.checkpoint import undoing
from ijfs.live.checkpoint.snapshot_io import live_meta
from ijfs.live.errors import NotLiveError, ProtocolError
from ijfs.live.keeper import outside
from ijfs.live.keeper.autosave import Autosaver, SaveVerb
from ijfs.live.keeper.state import InstanceState
from ijfs.live.keeper.threads import in_thread
from ijfs.live.model.environment import NUMBER_VARIABLE
from ijfs.live.model.guest_protocol import (
    ExitAnswer,
    GuestAnswer,
    GuestBack,
    GuestCell,
    GuestExit,
    GuestFork,
    GuestLog,
    GuestRequest,
    GuestSave,
    GuestSecret,
    GuestStatus,
    GuestVerb,
    LogAnswer,
    LoggedProgram,
    LoggedSnapshot,
    SaveAnswer,
    SecretAnswer,
    StatusAnswer,
    VerbAnswer,
)
from ijfs.live.model.paths import InstancePaths, live_directory
from ijfs.live.model.protocol import Emit, Event, RestoreArguments, SaveArguments
from ijfs.live.model.record_file import read_record
from ijfs.live.process import procfs
from ijfs_engine import Snapshot
from ijfs_engine.errors import IjfsError

_log = logging.getLogger("ijfs.keeper")


MOST_COPIES = 64

RestoreVerb = Callable[[RestoreArguments, Emit], Awaitable[object]]
"""The keeper's way of going back in place."""
R = TypeVar("R")
Done = SaveAnswer | VerbAnswer


class GuestRequests:
    """The requests of one keeper's program. `save`: the keeper's verb."""

    def __init__(self, state: InstanceState, autosaver: Autosaver, save: SaveVerb, go_back: RestoreVerb) -> None:
        self._state = state
        self._autosaver = autosaver
        self._save_verb = save
        self._go_back_verb = go_back
        self._nonces: dict[str, SaveAnswer | VerbAnswer | IjfsError] = {}

    def resumes(self, snapshot: Snapshot) -> None:
        """The program was restored from that snapshot. If the program itself asked for that snapshot, its next request
        is answered with `resumed`, even where this keeper has answered `saved`."""
        nonce = live_meta(snapshot).guest.nonce
        if nonce:
            number = int(self._state.record.spec.late_env.get(NUMBER_VARIABLE, "0"))
            self._nonces[nonce] = SaveAnswer("resumed", snapshot.id.hex(), self._state.name, number=number)

    async def answer(self, request: GuestRequest) -> GuestAnswer:
        """Answer one request at once. (Hooks are the guest port's own.)"""
        match request:
            case GuestSave():
                return self._begun(request.nonce, self._save_for_program, request)
            case GuestBack():
                return self._begun(request.nonce, self._go_back, request)
            case GuestFork():
                return self._begun(request.nonce, self._fork, request)
            case GuestVerb():
                outside.checked(request.words)
                return self._begun(request.nonce, self._run_outside, request)
            case GuestCell():
                return self._autosaver.cell(request, self._save_verb)
            case GuestLog():
                return self._log()
            case GuestExit():
                return self._exit()
            case GuestStatus():
                return self._status()
            case GuestSecret():
                return self._secret(request.name)
        raise ProtocolError(f"nobody answers a {type(request).__name__}")

    def _status(self) -> StatusAnswer:
        state = self._state
        return StatusAnswer(state.name, str(state.repo), state.record.snapshot)

    def _exit(self) -> ExitAnswer:
        traffic = self._state.relay.traffic
        return ExitAnswer(not traffic.ends_by_message, traffic.unsaved_before, self._state.name)

    def _secret(self, name: str) -> SecretAnswer:
        if name not in self._state.secrets:
            raise IjfsError(
                f"nobody gave `{self._state.name}` a secret `{name}`",
                hint=f"`--secret {name}` of `ijfs run`, `restore` or `fork` does, each time",
            )
        return SecretAnswer(self._state.secrets[name].encode())

    def _begun(self, nonce: str, do: Callable[[R], Awaitable[Done]], request: R) -> SaveAnswer | VerbAnswer:
        """How far the request of this nonce is, which is begun where it was not yet."""
        if not nonce:
            raise IjfsError("such a request needs a nonce")
        if nonce not in self._nonces:
            self._nonces[nonce] = SaveAnswer("pending")
            self._state.spawn(self._settle, nonce, do, request)
        answer = self._nonces[nonce]
        if isinstance(answer, IjfsError):
            raise answer.with_traceback(None)  # each time anew: the frames of the last time go
        return answer

    async def _settle(self, nonce: str, do: Callable[[R], Awaitable[Done]], request: R) -> None:
        try:
            self._nonces[nonce] = await do(request)
        except IjfsError as error:
            self._nonces[nonce] = error
        except Exception as error:
            _log.exception("a request of the program failed")
            self._nonces[nonce] = IjfsError(f"the keeper failed: {error}")

    async def _save_for_program(self, request: GuestSave) -> SaveAnswer:
        arguments = SaveArguments(
            message=request.message,
            nonce=request.nonce,
            wait=request.wait,
            verify=request.verify and request.wait,
            auto=request.auto,
        )
        result = await self._save_verb(arguments, _silent)
        return SaveAnswer(
            "saved" if result.snapshot else "thawed",
            result.snapshot,
            self._state.name,
            result.verified,
            result.warnings,
        )

    async def _go_back(self, request: GuestBack) -> SaveAnswer:
        """Whoever hears of this is the program after a way forward: where it goes back, nobody is there to hear."""
        state = self._state
        meant = await in_thread(self._meant, request.snapshot)
        if request.save_first:
            message = f"before going back to {meant.id.hex()[:12]}"
            await self._save_verb(SaveArguments(message=message, nonce=request.nonce), _silent)
        await self._go_back_verb(RestoreArguments(snapshot=meant.id.hex(), busy="force"), _silent)
        return SaveAnswer("resumed", meant.id.hex(), state.name)

    def _meant(self, spelling: str) -> Snapshot:
        """The snapshot to go back to. The cell that asks has run no further than to here."""
        repository, state = self._state.snapshots.repository, self._state
        if spelling:
            return repository.snapshot(repository.resolve(spelling))
        stands_on = state.snapshot.id if state.snapshot is not None else None
        return undoing.before_cell(repository, stands_on, state.relay.traffic.count)

    async def _fork(self, request: GuestFork) -> SaveAnswer:
        if not 1 <= request.count <= MOST_COPIES:
            raise ProtocolError(f"a program can have 1 to {MOST_COPIES} copies at once")
        state = self._state
        arguments = SaveArguments(message=request.message or "where copies begin", nonce=request.nonce)
        result = await self._save_verb(arguments, _silent)
        names = await in_thread(outside.fork, state.repo, result.snapshot, state.name, request.count, state.secrets)
        return SaveAnswer("saved", result.snapshot, state.name, names=tuple(names), number=0)

    async def _run_outside(self, request: GuestVerb) -> VerbAnswer:
        if request.words[0] == "adopt" and not self._state.record.spec.front_end:
            raise ProtocolError(
                "only the kernel of a notebook can put files on the machine", hint="`ijfs adopt` in a terminal does"
            )
        words = outside.about_itself(request.words, self._state.name)
        done = await in_thread(outside.run, self._state.repo, words, request.columns)
        return VerbAnswer("done", done.code, done.out, done.err)

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


def _silent(event: Event) -> None:
    """Nobody is told how far it is."""


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
